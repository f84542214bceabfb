from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.outbox import OutboxMail
from dynabench_site.state import StatusEvent

__all__ = ["ClusterHeartbeat", "OutboxMail", "StatusEvent"]
