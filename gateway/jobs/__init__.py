"""Work that is taken now and done later: a durable queue that one machine's gateways share.

    POST /async-function/f ─> routes ─> store: queue "invoke" ─> pool ─> invocations ─> invoker
                                202 <─────┘ once it is synced      │
                                                                   └─> queue "callback" ─> pool
                                                                         callbacks ─> ssrf guard

`queue` is the SQL and knows nothing of HTTP; a job is a key, a JSON head and a body. `store` runs
it in one thread, many callers to a transaction, and hears of the other gateway processes. A job
that runs is leased to the process that runs it for as long as that lives: the end of its
connection, which the kernel closes, ends its leases, so no clock decides and a process that was
stopped for a while keeps its work.

What is promised: a job that was answered 202 runs until it has an outcome, which is recorded once,
together with its callback, and never run again after that. What ran when its process died runs
again; `interruptions` counts this.
"""
