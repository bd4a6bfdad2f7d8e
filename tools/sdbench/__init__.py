# SPDX-License-Identifier: Apache-2.0
"""sdbench: what sdrun is worth, as ratios against the native kernel measured in the same run."""
