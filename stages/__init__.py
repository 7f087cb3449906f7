"""The stages: functions from named files to named files. Nothing here knows of Prefect."""
