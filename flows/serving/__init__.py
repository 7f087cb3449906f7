"""Runs servers and registers with them what is offered: Prefect's server and worker, and the server of vLLM.

Also deployments, automations, notifications, and the places that flow runs of one machine share. May import all of
`flows` but `flows.commands` and `flows.cli`.
"""
