"""The subcommands of `grpo`, a file for each concern. They import what is slow only when they run."""
