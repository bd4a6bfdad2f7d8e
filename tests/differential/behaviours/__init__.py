# SPDX-License-Identifier: Apache-2.0
"""All behaviours; importing this registers them."""

from tests.differential.behaviours import ends, receive, transmit

__all__ = ["ends", "receive", "transmit"]
