"""The manifests for Kubernetes: published schemas take them, and their pods find each other."""

import copy
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distcnn import launch
from distcnn.cli.command import EXIT_STOPPED
from distcnn.errors import UsageError
from distcnn.runtime.cluster import find_cluster
from distcnn.runtime.rank_process import PAGE_VARIABLE
from tests.conftest import ROOT
from tests.launch.schemas import refusals
from tests.launch.test_multi_launch import parsed

FOLDER = ROOT / "launch/k8s"
FREE = ("labels", "selector", "limits")
"""Objects whose fields anybody may name."""


def documents() -> dict[str, dict[str, Any]]:
    """Returns the documents of all manifests by their kinds."""
    found = [
        each for path in FOLDER.glob("*.yaml") for each in yaml.safe_load_all(path.read_text())
    ]
    return {document["kind"]: document for document in found}


KINDS = documents()
KUEUED = ("Job", "JobSet", "MPIJob", "TrainJob")


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of all named fields."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            if name not in FREE:
                yield from fields(inner, (*path, name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from fields(inner, (*path, place))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_published_schemas_take_it_and_refuse_any_misspelt_field(kind):
    document = KINDS[kind]
    assert refusals(document) == []
    paths = list(fields({"spec": document["spec"]}))
    assert len(paths) > 5
    for *above, name in paths[1:]:
        wrong = copy.deepcopy(document)
        holder: Any = wrong
        for step in above:
            holder = holder[step]
        holder[f"{name}s"] = holder.pop(name)
        assert refusals(wrong), (*above, name)


@pytest.mark.parametrize("kind", KUEUED)
def test_kueue_finds_its_queue_and_suspends_it_itself(kind):
    document = KINDS[kind]
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "default"
    # Without Kueue, nothing would ever resume a job that is suspended by its manifest.
    assert "suspend" not in document["spec"]
    assert "suspend" not in document["spec"].get("runPolicy", {})


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """Yields everything that describes pods."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for inner in value.values():
            yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def trains(pod: dict[str, Any]) -> bool:
    return "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]


def test_pods_that_train_have_shared_memory_and_time_to_save():
    pods = [each["spec"] for kind in KINDS.values() for each in pod_templates(kind)]
    assert [trains(pod) for pod in pods].count(True) == 4
    for pod in pods:
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
        assert set(volumes) == set(mounts)
        assert mounts["runs"] == container.get("workingDir", "/runs") == "/runs"
        if trains(pod):
            assert mounts["shared-memory"] == "/dev/shm"
            assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
        assert pod["terminationGracePeriodSeconds"] > 30  # Kubernetes' own choice


def job_specs(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "podFailurePolicy" in value:
            yield value
        for inner in value.values():
            yield from job_specs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from job_specs(inner)


def test_a_pod_that_has_saved_or_was_evicted_does_not_count_as_a_failure():
    specs = [spec for kind in KINDS.values() for spec in job_specs(kind)]
    assert len(specs) == 4
    for spec in specs:
        pod = spec["template"]["spec"]
        actions: dict[Any, str] = {}
        for rule in spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes", {"operator": "In", "values": []})
            assert codes.get("containerName", "") in ("", pod["containers"][0]["name"])
            assert codes["operator"] == "In"
            conditions = [condition["type"] for condition in rule.get("onPodConditions", [])]
            actions |= dict.fromkeys([*codes["values"], *conditions], rule["action"])
        saved = {UsageError.exit_code: "FailJob", EXIT_STOPPED: "Ignore"}
        is_sshd = "sshd" in pod["containers"][0]["command"][0]
        assert actions == {"DisruptionTarget": "Ignore"} | ({} if is_sshd else saved)
        assert pod["restartPolicy"] == "Never"  # the API refuses the policy otherwise


def test_a_wrong_flag_ends_a_jobset_and_a_job_counts_the_faults_of_each_pod():
    runtime = KINDS["ClusterTrainingRuntime"]["spec"]["template"]["spec"]
    for spec in (KINDS["JobSet"]["spec"], runtime):
        (rule,) = spec["failurePolicy"]["rules"]
        assert rule["action"] == "FailJobSet"
        assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
        assert spec["failurePolicy"]["maxRestarts"] > 0
    assert KINDS["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    job = KINDS["Job"]["spec"]
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (3, 0)
    assert "backoffLimit" not in job


def test_the_indexed_job_finds_its_pods():
    service, job = KINDS["Service"], KINDS["Job"]
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == 2
    assert pod["subdomain"] == service["metadata"]["name"]
    for index in range(spec["completions"]):
        text = values["TF_CONFIG"].replace("$(WORKER)", str(index))
        environment = {"TF_CONFIG": text, "JOB_COMPLETION_INDEX": str(index)}
        cluster = find_cluster(environment)
        assert (cluster.rank, cluster.size) == (index, spec["completions"])
        name = f"{job['metadata']['name']}-{index}.{pod['subdomain']}"
        assert cluster.worker_addresses(None)[index] == f"{name}:2222"
    assert container["startupProbe"]["tcpSocket"] == {"port": 2222}
    config = parsed([*container["command"], *container["args"]])
    assert (config.distribute.strategy, config.out) == ("multi_worker", "/runs/quickstart")


def test_the_jobset_finds_its_pods():
    jobset = KINDS["JobSet"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert spec["completions"] == spec["parallelism"] == 2
    for index in range(spec["completions"]):
        values = {entry["name"]: entry["value"] for entry in container["env"]}
        cluster = find_cluster({**values, "JOB_COMPLETION_INDEX": str(index)})
        assert (cluster.scheme, cluster.rank, cluster.size) == ("kubernetes", index, 2)
        # JobSet's names: JOBSET-REPLICATEDJOB-JOB-POD, in the subdomain of its own name.
        name = jobset["metadata"]["name"]
        assert cluster.hosts is not None
        assert cluster.hosts[index] == f"{name}-{replicated['name']}-0-{index}.{name}"
    assert parsed([*container["command"], *container["args"]]).distribute.strategy == "horovod"


def launched(command: list[str], capsys: Any) -> list[str]:
    """Returns the command line of the ranks that a container's launcher would start."""
    assert command[:3] == ["python", "-m", "distcnn.launch"]
    place = command.index("train")
    assert launch.main([*command[3:place], "--dry-run", *command[place:]]) == 0
    return shlex.split(capsys.readouterr().out)


def require_ranks(line: list[str], hosts: list[str]) -> None:
    """Checks that every host has a rank, which finds itself from what the launcher sets."""
    assert line[line.index("-np") + 1] == str(len(hosts))
    assert line[line.index("-H") + 1].split(",") == [f"{host}:1" for host in hosts]
    assert parsed(line).distribute.strategy == "horovod"
    port = f"Port {line[line.index('--ssh-port') + 1]}\n"
    assert port in (ROOT / "docker/sshd_config").read_text()
    for rank, host in enumerate(hosts):
        place = {"HOROVOD_RANK": rank, "HOROVOD_SIZE": len(hosts), "HOROVOD_HOSTNAME": host}
        local = {"HOROVOD_LOCAL_RANK": 0, "HOROVOD_LOCAL_SIZE": 1}
        # What the launcher's own container has, and passes on.
        job = {"JOB_COMPLETION_INDEX": 0, "OMPI_MCA_orte_set_default_slots": 1}
        listed = {"DISTCNN_HOSTS": ",".join(hosts)}
        cluster = find_cluster({k: str(v) for k, v in (place | local | job | listed).items()})
        assert (cluster.scheme, cluster.rank, cluster.size) == ("horovod", rank, len(hosts))


def test_the_mpijob_starts_a_worker_on_each_pod_that_runs(tmp_path, capsys):
    spec = KINDS["MPIJob"]["spec"]
    replicas = spec["mpiReplicaSpecs"]
    container = replicas["Launcher"]["template"]["spec"]["containers"][0]
    command = [*container["command"], *container["args"]]
    hosts = [f"distcnn-worker-{n}.distcnn.default.svc" for n in range(2)]
    script = tmp_path / "discover_hosts.sh"  # as the operator writes it
    script.write_text("#!/bin/sh\n" + "".join(f"echo {host}\n" for host in hosts))
    script.chmod(0o755)
    command[command.index("/etc/mpi/discover_hosts.sh")] = str(script)
    require_ranks(launched(command, capsys), hosts)
    assert spec["slotsPerWorker"] == 1  # the script names no slots
    assert replicas["Worker"]["replicas"] == len(hosts)
    keys = f"AuthorizedKeysFile {spec['sshAuthMountPath']}/authorized_keys\n"
    assert keys in (ROOT / "docker/sshd_config").read_text()


def test_a_trainjob_starts_a_worker_on_each_node(tmp_path, capsys):
    runtime, job = KINDS["ClusterTrainingRuntime"]["spec"], KINDS["TrainJob"]
    assert job["spec"]["runtimeRef"]["name"] == KINDS["ClusterTrainingRuntime"]["metadata"]["name"]
    replicated = {each["name"]: each for each in runtime["template"]["spec"]["replicatedJobs"]}
    launcher = replicated["launcher"]["template"]
    assert (
        launcher["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    )
    container = launcher["spec"]["template"]["spec"]["containers"][0]
    assert container["name"] == "node"  # the one that gets a TrainJob's arguments
    name, nodes = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
    hosts = [f"{name}-node-0-{n}.{name}" for n in range(nodes)]
    file = tmp_path / "hostfile"  # as Trainer writes it
    file.write_text("".join(f"{host} slots=1\n" for host in hosts))
    for arguments in (container["args"], job["spec"]["trainer"]["args"]):
        command = [*container["command"], *arguments]
        command[command.index("/etc/mpi/hostfile")] = str(file)
        require_ranks(launched(command, capsys), hosts)
    keys = f"AuthorizedKeysFile {runtime['mlPolicy']['mpi']['sshAuthMountPath']}/authorized_keys\n"
    assert keys in (ROOT / "docker/sshd_config").read_text()
    # Trainer takes the runtime's number for the Job that has the label, so for the launcher.
    assert runtime["mlPolicy"]["numNodes"] == 1


TRAP = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True)"


def test_a_pod_that_is_to_end_lets_its_ranks_save(tmp_path):
    """In a folder that stands for /proc, since the ranks of others may run on this machine."""
    pods = [
        each["spec"]
        for kind in ("MPIJob", "ClusterTrainingRuntime")
        for each in pod_templates(KINDS[kind])
    ]
    scripts = [
        pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        for pod in pods
        if trains(pod)
    ]
    first, second = scripts
    assert first == second
    rank, other = (
        subprocess.Popen([sys.executable, "-c", f"{TRAP}; time.sleep(60)"], stdout=subprocess.PIPE)
        for _ in range(2)
    )
    try:
        for process, variable in ((rank, PAGE_VARIABLE), (other, "HOME")):
            assert process.stdout is not None
            process.stdout.readline()
            folder = tmp_path / str(process.pid)
            folder.mkdir()
            (folder / "environ").write_bytes(f"A=1\0{variable}=5\0".encode())
        done: list[Path] = []

        def reap() -> None:
            rank.wait()
            done.append(tmp_path / str(rank.pid) / "environ")
            done[0].unlink()
            done[0].parent.rmdir()

        thread = threading.Thread(target=reap)
        thread.start()
        shell = [*first[:2], first[2].replace("/proc", str(tmp_path))]
        subprocess.run(shell, check=True, timeout=20, env={"PATH": os.environ["PATH"]})
        thread.join(20)
        assert done, "the script has not waited"
        assert rank.returncode == EXIT_STOPPED
        assert other.poll() is None
    finally:
        for process in (rank, other):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
