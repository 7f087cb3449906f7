"""Runs verifiers and functions of the user in processes that may hang, crash or take too long.

A pool with limits, the process that forks its workers, and a process for each function of the user.
"""
