"""Kubernetes' published schemas, as the models of the package kubeflow-trainer-api."""

from collections.abc import Iterator
from typing import Any

import pytest

MODELS = {
    ("v1", "Service"): "IoK8sApiCoreV1Service",
    ("v1", "PodTemplate"): "IoK8sApiCoreV1PodTemplate",
    ("batch/v1", "Job"): "IoK8sApiBatchV1Job",
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): "JobsetV1alpha2JobSet",
    ("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime"): (
        "TrainerV1alpha1ClusterTrainingRuntime"
    ),
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "TrainerV1alpha1TrainJob",
}

MPIJOB: dict[str, Any] = {
    "slotsPerWorker": int,
    "launcherCreationPolicy": str,
    "sshAuthMountPath": str,
    "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int, "suspend": bool},
    "mpiReplicaSpecs": {
        role: {"replicas": int, "restartPolicy": str, "template": dict}
        for role in ("Launcher", "Worker")
    },
}
"""Fields of an MPIJob's spec, as its definition in version 0.8 of the operator names them: no
package publishes that one."""


def refusals(document: dict[str, Any]) -> list[str]:
    """Returns what a schema refuses in a document: wrong types, and fields that it lacks."""
    if document["kind"] == "MPIJob":
        found = list(_unlike(document["spec"], MPIJOB, "spec"))
        for role, replica in document["spec"].get("mpiReplicaSpecs", {}).items():
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": replica.get("template")}
            found += [f"{role}: {each}" for each in refusals(pod)]
        return found
    models = pytest.importorskip("kubeflow_trainer_api.models")
    pydantic = pytest.importorskip("pydantic")
    model = getattr(models, MODELS[document["apiVersion"], document["kind"]])
    try:
        known = model.from_dict(document).to_dict()
    except pydantic.ValidationError as error:
        return [str(error)]
    return list(_lost(document, known, document["kind"]))


def _lost(given: Any, known: Any, path: str) -> Iterator[str]:
    """Yields the fields that a model has not taken over."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                yield f"{path}.{name}"
            else:
                yield from _lost(value, known[name], f"{path}.{name}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, pair in enumerate(zip(given, known, strict=True)):
            yield from _lost(*pair, f"{path}[{number}]")
    elif given != known:
        yield f"{path} is {given!r}, but {known!r} to the schema"


def _unlike(given: dict[str, Any], fields: dict[str, Any], path: str) -> Iterator[str]:
    for name, value in given.items():
        kind = fields.get(name)
        if isinstance(kind, dict) and isinstance(value, dict):
            yield from _unlike(value, kind, f"{path}.{name}")
        elif kind is None or not isinstance(value, kind):
            yield f"{path}.{name}"
