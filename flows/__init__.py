"""The flows: Prefect and the command line around the stages. No arithmetic here."""
