"""How the CPUs and GPUs of a cluster are shared."""

from math import floor

import pytest

from cluster.config import ClusterConfig
from cluster.runtime import Resources
from cluster.scaling import in_process, max_concurrent_trials, plan_workers


def cluster_of(*, nodes: int = 1, cpus: float = 2, gpus: int = 0) -> Resources:
    return Resources(
        num_nodes=nodes, num_cpus=cpus, num_gpus=gpus, memory_gib=8.0, object_store_gib=2.0
    )


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("concurrent", [1, 2, 3])
def test_read_tasks_can_be_scheduled_while_all_workers_run(cpus: int, concurrent: int) -> None:
    for num_workers in range(1, cpus // concurrent + 1):
        plan = plan_workers(
            cluster_of(cpus=cpus),
            ClusterConfig(num_workers=num_workers),
            num_concurrent=concurrent,
        )
        reserved = concurrent * num_workers * plan.cpus_per_worker
        readers = concurrent * num_workers * plan.reader_cpus
        assert plan.cpus_per_worker > 0.25
        assert reserved <= cpus / 2
        assert reserved + readers <= cpus, "each worker must be able to run one read task"


@pytest.mark.parametrize("node_cpus", [(2, 2, 2), (1, 1, 4), (8, 1), (1, 1, 1, 9), (16,)])
@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_workers_fit_on_any_mix_of_nodes(
    node_cpus: tuple[int, ...], num_workers: int | None
) -> None:
    resources = cluster_of(nodes=len(node_cpus), cpus=sum(node_cpus))
    plan = plan_workers(resources, ClusterConfig(num_workers=num_workers))
    assert sum(floor(cpus / plan.cpus_per_worker) for cpus in node_cpus) >= plan.num_workers


@pytest.mark.parametrize("node_cpus", [2, 4, 64])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 6])
def test_workers_of_dead_nodes_leave_room_for_a_reader_on_those_left(
    node_cpus: int, num_workers: int
) -> None:
    elastic = ClusterConfig(num_workers=num_workers, min_workers=1)
    plan = plan_workers(cluster_of(nodes=3, cpus=3 * node_cpus), elastic)
    fitting = floor(node_cpus / plan.cpus_per_worker)

    assert 3 * fitting >= num_workers
    assert fitting * plan.cpus_per_worker + plan.reader_cpus <= node_cpus


def test_default_is_one_worker_per_node() -> None:
    plan = plan_workers(cluster_of(nodes=3, cpus=6), ClusterConfig())
    assert (plan.num_workers, plan.cpus_per_worker, plan.threads_per_worker) == (3, 1.0, 2)


def test_threads_stay_within_a_node() -> None:
    plan = plan_workers(cluster_of(nodes=3, cpus=6), ClusterConfig(num_workers=1))
    assert plan.threads_per_worker == 2


def test_two_cpus_hold_two_workers_and_not_three() -> None:
    plan = plan_workers(cluster_of(cpus=2), ClusterConfig(num_workers=2))
    assert (plan.cpus_per_worker, plan.reader_cpus, plan.threads_per_worker) == (0.5, 0.5, 1)
    with pytest.raises(ValueError, match=r"cluster\.num_workers is 3: .* 2 CPUs .* use 2 or fewer"):
        plan_workers(cluster_of(cpus=2), ClusterConfig(num_workers=3))


def test_a_training_in_process_takes_one_share() -> None:
    plan = plan_workers(
        cluster_of(cpus=4), in_process(ClusterConfig(num_workers=4)), num_concurrent=2
    )
    assert (plan.num_workers, plan.cpus_per_worker, plan.threads_per_worker) == (0, 1.0, 2)


def test_gpus_are_all_used_and_divided_among_concurrent_trials() -> None:
    resources = cluster_of(nodes=2, cpus=32, gpus=8)
    alone = plan_workers(resources, ClusterConfig())
    assert (alone.num_workers, alone.use_gpu, alone.cpus_per_worker) == (8, True, 1.0)
    assert plan_workers(resources, ClusterConfig(), num_concurrent=4).num_workers == 2
    with pytest.raises(ValueError, match="8 GPUs"):
        plan_workers(resources, ClusterConfig(num_workers=9))


def test_gpu_asked_where_none_is() -> None:
    for plan in (plan_workers, max_concurrent_trials):
        with pytest.raises(ValueError, match=r"cluster\.device is 'gpu': the cluster has no GPU"):
            plan(cluster_of(), ClusterConfig(device="gpu"))


def test_cpu_asked_where_gpus_are() -> None:
    assert not plan_workers(cluster_of(gpus=1), ClusterConfig(device="cpu")).use_gpu


@pytest.mark.parametrize(
    ("resources", "num_workers", "expected"),
    [
        (cluster_of(cpus=2), 2, 1),
        (cluster_of(cpus=2), 0, 1),
        (cluster_of(cpus=8), 0, 4),
        (cluster_of(cpus=2), None, 1),
        (cluster_of(nodes=3, cpus=12), None, 2),
        (cluster_of(nodes=3, cpus=6), 4, 1),
        (cluster_of(cpus=1), 4, 1),
        (cluster_of(cpus=32, gpus=8), 2, 4),
        (cluster_of(cpus=32, gpus=8), None, 8),
    ],
)
def test_concurrent_trials_never_outgrow_the_cluster(
    resources: Resources, num_workers: int | None, expected: int
) -> None:
    assert max_concurrent_trials(resources, ClusterConfig(num_workers=num_workers)) == expected


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_a_cluster_without_cpus_is_said_to_have_none(num_workers: int | None) -> None:
    """As where an autoscaler has started no worker yet: no other number of workers helps."""
    with pytest.raises(ValueError, match=r"the cluster has 0 CPUs, .*start a worker node") as error:
        plan_workers(cluster_of(nodes=0, cpus=0), ClusterConfig(num_workers=num_workers))
    assert "num_workers" not in str(error.value)


@pytest.mark.parametrize(
    ("cpus", "gpus", "num_concurrent", "expected"),
    [(1, 4, 1, 1), (2, 4, 1, 2), (2.5, 4, 1, 2), (4, 4, 2, 2), (4, 8, 4, 1), (8, 4, 1, 4)],
)
def test_a_default_of_workers_has_a_cpu_for_each_gpu_that_it_takes(
    cpus: float, gpus: int, num_concurrent: int, expected: int
) -> None:
    """Slurm gives a task one CPU, however many GPUs it asks for."""
    resources = cluster_of(cpus=cpus, gpus=gpus)
    plan = plan_workers(resources, ClusterConfig(), num_concurrent=num_concurrent)
    assert (plan.num_workers, plan.use_gpu) == (expected, True)


@pytest.mark.parametrize("num_workers", [None, 1, 3, 8])
def test_the_number_of_workers_that_an_error_names_fits(num_workers: int | None) -> None:
    """Of a cluster with more GPUs than CPUs, of a sweep and of a training alone."""
    resources, config = cluster_of(cpus=4, gpus=8), ClusterConfig(num_workers=num_workers)
    for num_concurrent in (1, max_concurrent_trials(resources, config)):
        try:
            plan_workers(resources, config, num_concurrent=num_concurrent)
        except ValueError as error:
            most = int(str(error).split(" or fewer")[0].split()[-1])
            plan_workers(resources, ClusterConfig(num_workers=most), num_concurrent=num_concurrent)
            assert most > 0
