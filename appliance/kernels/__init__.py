# SPDX-License-Identifier: Apache-2.0
"""The hand-written CUDA kernels, compiled ahead of time: `kernels.fatbin` holds one cubin for each architecture.

Rule: nothing here is imported on a CPU, where numpy serves. `kernels.json` says what the fatbin was made from.
"""
