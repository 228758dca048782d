"""The secret between the gateways and one instance.

The process of an instance runs the function's code, so it must not hold the cluster's token. What
it gets is derived from that: whoever has the cluster's token and knows the instance's id computes
it, and nobody learns from it the token of the cluster or of another instance.
"""

from __future__ import annotations

import hashlib
import hmac


def instance_token(cluster_token: str, instance_id: str) -> str:
    message = f"stoker instance {instance_id}"
    return hmac.new(cluster_token.encode(), message.encode(), hashlib.sha256).hexdigest()
