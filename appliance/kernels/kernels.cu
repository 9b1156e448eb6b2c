// SPDX-License-Identifier: Apache-2.0
// The hand-written kernels: normalise and pack an image into a model's input, take it back, unmix coil images.
//
// One body. nvcc makes cubins of it (appliance/kernels/build.py), the C++ compiler a CPU build, which is the oracle of
// the tests and nothing else. Neither may contract a multiplication and an addition (--fmad=false, -ffp-contract=off):
// what the CPU build gives is then what a GPU gives, bit for bit. All three wait for memory, so that costs nothing.
// Each loop serves any grid: a thread begins at its own row and column and goes on in steps of the grid.

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KERNEL extern "C" __global__
#define INLINE static __device__ __forceinline__
#define NOT_UNROLLED _Pragma("unroll 1")  // or the code is half as long again
INLINE int first_x() { return blockIdx.x * blockDim.x + threadIdx.x; }
INLINE int first_y() { return blockIdx.y * blockDim.y + threadIdx.y; }
INLINE int step_x() { return gridDim.x * blockDim.x; }
INLINE int step_y() { return gridDim.y * blockDim.y; }
INLINE void count(uint32_t *n) { atomicAdd(n, 1u); }
#else
#define KERNEL extern "C"
#define INLINE static inline
#define NOT_UNROLLED
INLINE int first_x() { return 0; }
INLINE int first_y() { return 0; }
INLINE int step_x() { return 1; }
INLINE int step_y() { return 1; }
INLINE void count(uint32_t *n) { ++*n; }
#endif

struct alignas(8) Complex {
    float re, im;
};

// As numpy's minimum and maximum: NaN wins, where fminf and fmaxf lose it.
INLINE float least(float a, float b) { return a < b || a != a ? a : b; }
INLINE float most(float a, float b) { return a > b || a != a ? a : b; }

INLINE Complex times(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

// Where numpy's "reflect" takes pixel i from that a side of n is padded with.
INLINE int mirrored(int i, int n) {
    if (i < n || n == 1) return i < n ? i : 0;
    i %= 2 * (n - 1);
    return i < n ? i : 2 * (n - 1) - i;
}

// Where numpy's roll by `by` takes element i of n from.
INLINE int rolled(int i, int by, int n) { return i >= by ? i - by : i - by + n; }

INLINE float level_at(const float *level_map, float level, size_t i) {
    return most(level_map ? level_map[i] : level, 0.0f);
}

// image, level_map (y, x) -> out (2, row, column): image and noise level over `scale`, mirrored at the far sides up to
// the size that the model takes. Without a level_map `level` holds everywhere.
KERNEL void to_model(const float *image, const float *level_map, float level, float scale, int n_y, int n_x,
                     int n_rows, int n_columns, float *out) {
    float *const levels = out + (size_t)n_rows * n_columns;
    NOT_UNROLLED for (int y = first_y(); y < n_rows; y += step_y()) {
        NOT_UNROLLED for (int x = first_x(); x < n_columns; x += step_x()) {
            const size_t from = (size_t)mirrored(y, n_y) * n_x + mirrored(x, n_x), to = (size_t)y * n_columns + x;
            out[to] = image[from] / scale;
            levels[to] = level_at(level_map, level, from) / scale;
        }
    }
}

// round((value - low) * gain), clipped to 16 bits; what is clipped and NaN, which becomes 0, are counted.
INLINE uint16_t pack(float value, float low, float gain, uint32_t *n_clipped) {
    const float scaled = rintf((value - low) * gain);
    if (scaled >= 0.0f && scaled <= 65535.0f) return (uint16_t)scaled;
    count(n_clipped);
    return scaled > 65535.0f ? 65535 : 0;
}

// image (y, x), noise (row, column) as the model names it -> out (y, x) = image less at most `most_sigma` standard
// deviations of noise, never across zero; pixels (y, x): `out` through the window that begins at `low`.
// n_clipped is added to.
KERNEL void from_model(const float *image, const float *noise, const float *level_map, float level, float scale,
                       float strength, float most_sigma, float low, float gain, int n_y, int n_x,
                       int n_columns, float *out, uint16_t *pixels, uint32_t *n_clipped) {
    NOT_UNROLLED for (int y = first_y(); y < n_y; y += step_y()) {
        NOT_UNROLLED for (int x = first_x(); x < n_x; x += step_x()) {
            const size_t i = (size_t)y * n_x + x;
            const float named = noise[(size_t)y * n_columns + x] * scale;
            const float bound = most_sigma * level_at(level_map, level, i);
            const float taken = least(most(named, -bound), least(bound, fabsf(image[i])));
            const float clean = image[i] - strength * taken;
            out[i] = clean;
            pixels[i] = pack(clean, low, gain, n_clipped);
        }
    }
}

// weights (coil, fold, rows, x), folded (coil, rows, x) as the FFT leaves them, line_shift (fold * rows)
// -> out (fold * rows, x), centred: appliance/mri/unmix.py behind its FFT.
KERNEL void unmix(const Complex *weights, const Complex *folded, const Complex *line_shift, int n_coils, int fold,
                  int n_rows, int n_x, Complex *out) {
    const int n_y = fold * n_rows;
    const size_t n_folded = (size_t)n_rows * n_x, n_image = fold * n_folded;
    NOT_UNROLLED for (int y = first_y(); y < n_y; y += step_y()) {
        const int row = rolled(y % n_rows, n_y / 2 % n_rows, n_rows);
        const Complex *const block = weights + y / n_rows * n_folded;
        NOT_UNROLLED for (int x = first_x(); x < n_x; x += step_x()) {
            const size_t from = (size_t)row * n_x + rolled(x, n_x / 2, n_x);
            Complex sum = times(block[from], folded[from]);
            for (int coil = 1; coil < n_coils; ++coil) {
                const Complex more = times(block[coil * n_image + from], folded[coil * n_folded + from]);
                sum = {sum.re + more.re, sum.im + more.im};
            }
            out[(size_t)y * n_x + x] = times(sum, line_shift[y]);
        }
    }
}
