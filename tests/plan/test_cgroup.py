"""Control groups of both versions, nested, in and out of containers."""

from pathlib import Path

from understudy.plan.cgroup import MemoryLimit, cpu_limit, memory_limits

GIB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712


def system(root: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join(mounts), **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_CPU = "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"


def test_no_control_groups(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == [] and cpu_limit(tmp_path) is None


def test_version_2_every_ancestor_counts(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/user.slice"
    files = {
        f"{at}/memory.max": str(4 * GIB),
        f"{at}/memory.current": str(3 * GIB),
        f"{at}/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        f"{at}/cpu.max": "150000 100000",
        f"{at}/app/memory.max": "max",
        f"{at}/app/cpu.max": "max 100000",
        f"{at}/app/inner/memory.max": str(8 * GIB),
    }
    root = system(tmp_path, "0::/user.slice/app/inner", [V2], files)
    assert memory_limits(root) == [MemoryLimit(8 * GIB, 0, 0), MemoryLimit(4 * GIB, 2 * GIB, 2 * GIB - 7)]
    assert cpu_limit(root) == 1.5


def test_version_1(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory"
    files = {
        f"{at}/memory.limit_in_bytes": str(NO_LIMIT_V1),
        f"{at}/jobs/memory.limit_in_bytes": str(2 * GIB),
        f"{at}/jobs/memory.usage_in_bytes": str(GIB),
        f"{at}/jobs/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\ntotal_active_file 9",
        f"{at}/jobs/one/memory.limit_in_bytes": str(NO_LIMIT_V1),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "100000",
    }
    cgroup = "9:name=systemd:/x\n4:memory:/jobs/one\n3:cpu,cpuacct:/jobs\n0::/"
    root = system(tmp_path, cgroup, [V1_MEMORY, V1_CPU], files)
    assert memory_limits(root) == [MemoryLimit(2 * GIB, GIB // 2, GIB // 2 - 9)]
    assert cpu_limit(root) == 0.5


def test_a_container_that_mounts_only_its_own_group(tmp_path: Path) -> None:
    mount = V1_MEMORY.replace(" / /sys", " /docker/abc /sys")
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)}
    root = system(tmp_path, "4:memory:/docker/abc", [mount], files)
    assert memory_limits(root) == [MemoryLimit(GIB, 0, 0)]


def test_a_container_whose_own_path_it_cannot_see(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/kubepods/pod7/abc", [V2], {"sys/fs/cgroup/memory.max": str(GIB)})
    assert memory_limits(root) == [MemoryLimit(GIB, 0, 0)]


def test_a_path_outside_the_namespace(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/../../other", [V2], {"sys/fs/cgroup/memory.max": str(GIB)})
    assert memory_limits(root) == [MemoryLimit(GIB, 0, 0)]


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    mount = V2.replace("/sys/fs/cgroup", "/sys/my\\040groups")
    root = system(tmp_path, "0::/", [mount], {"sys/my groups/memory.max": str(GIB)})
    assert memory_limits(root) == [MemoryLimit(GIB, 0, 0)]
