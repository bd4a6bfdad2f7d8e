# SPDX-License-Identifier: Apache-2.0
"""All behaviours; importing this registers them."""

from tests.differential.behaviours import receive

__all__ = ["receive"]
