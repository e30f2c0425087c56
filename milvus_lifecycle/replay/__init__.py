"""The reading side of the audit log: verify it, count it, follow it, show it.

    names --sources--> files --lines--> lines --decoding--> records
        records --rules--> verdict          (verify, parallel: in one process or several)
                --outages, incidents--> stats
                --timeline--> report        (milvus_lifecycle.report)
        lines --tail, follow--> what is going on now

Nothing here runs the engine; the table alone says what is legal.
"""
