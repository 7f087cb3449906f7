"""`grpo serve`: what is started in the UI runs, is cancelled, comes back after a crash, leaves nothing."""

from tests.flows.conftest import run_grpo


def test_a_run_is_started_as_the_form_does_and_a_stage_again(served):
    done = served.run("train", config="configs/small.yaml", run="formed", iterations=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert (served.folder / "artifacts/formed/iterations/0001/update/manifest.json").exists()
    done = served.run("stage", stage="score", run="formed", iteration=1)
    assert done["type"] == "COMPLETED", served.logs()
    assert run_grpo(served.folder, "status", "formed").returncode == 0


def test_a_configuration_is_chosen_from_the_files(served):
    schema = served.api("GET", "/deployments/name/train/train")["parameter_openapi_schema"]
    assert schema["properties"]["config"]["enum"] == ["configs/small.yaml"]
    assert "artifacts" not in schema["properties"]
