# SPDX-License-Identifier: Apache-2.0
"""What people run to look at sdrun and to measure it."""
