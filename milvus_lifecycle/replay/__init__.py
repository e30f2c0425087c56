"""The reading side of the audit log: verify it, count it, follow it, show it.

    names --files--> records --rules--> verdict             (verify: in one process or several)
                     records --outages--> stats
                     records --> timeline, report           (milvus_lifecycle.report)
    names --files--> what is going on now                  (audit tail)

Nothing here runs the engine; the table alone says what is legal.
"""
