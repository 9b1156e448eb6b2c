# SPDX-License-Identifier: Apache-2.0
"""How each shipped model was made. Needs the extras `train` and `dev`; the appliance itself never imports this."""
