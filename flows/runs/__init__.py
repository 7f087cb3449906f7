"""Holds what is known of runs on disk: opening them, their history, and what in them is current or stale.

Also what an iteration reads, the small records beside the stages (forks, nights, promotions, approvals), and the
retention rule. May import `flows.config` and `stages`.
"""
