"""A workspace's MLflow: MLflow's own server and store, in a process of its own that starts when it is first asked.

    python -m emulator.tracking_server DATABASE PORT ARTIFACTS

`mlflow ui --backend-store-uri sqlite:///DATABASE` opens the same metrics. Beside MLflow's routes there is one more, by
which the emulator makes the runs of jobs, whose ids MLflow would otherwise choose itself. ARTIFACTS is the address
below which azureml-mlflow finds them.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main(argv: list[str]) -> None:
    database, port, artifacts = argv
    os.nice(5)  # it starts beside the job that asks for it
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = artifacts
    from mlflow.server import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            pass

    app.add_url_rule("/emulator/runs", view_func=lambda: _put_run(artifacts), methods=["PUT"])
    make_server("127.0.0.1", int(port), app, threaded=True, request_handler=Quiet).serve_forever()


def _put_run(artifacts: str) -> Any:
    """Make a job's run with its experiment, or bring its status up to date."""
    from flask import jsonify, request
    from mlflow.server.handlers import _get_tracking_store
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun, SqlTag

    asked = request.get_json()
    store: Any = _get_tracking_store()
    with store.ManagedSessionMaker(read_only=False) as session:
        experiment = session.query(SqlExperiment).filter_by(name=asked["experiment"]).one_or_none()
        if experiment is None:
            experiment = SqlExperiment(
                experiment_id=int(asked["experiment_id"]),
                name=asked["experiment"],
                artifact_location=f"{artifacts}/{asked['experiment']}/runs",
                lifecycle_stage="active",
                creation_time=asked["start_time"],
                last_update_time=asked["start_time"],
            )
            session.add(experiment)
            session.flush()
        run = session.get(SqlRun, asked["run_id"])
        if run is None and asked["run_id"]:
            run = SqlRun(
                run_uuid=asked["run_id"],
                name=asked["name"],
                experiment_id=experiment.experiment_id,
                artifact_uri=f"{artifacts}/{asked['experiment']}/runs/{asked['run_id']}/artifacts",
                status=asked["status"],
                start_time=asked["start_time"],
                user_id="emulator",
                source_type="JOB",
                lifecycle_stage="active",
            )
            run.tags = [SqlTag(key="mlflow.runName", value=asked["name"])]
            session.add(run)
        if run is not None:
            run.status, run.end_time = asked["status"], asked["end_time"]
        return jsonify({"experiment_id": str(experiment.experiment_id)})


if __name__ == "__main__":
    main(sys.argv[1:])
