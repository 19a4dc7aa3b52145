"""The SIMT layer on the host finds what kernels do wrong, and executes right ones rightly in any order."""

from __future__ import annotations

import re

import pytest
import torch

from tests.simt.build import simt_module

RACE = r"in a race with thread \d+ of the same block at kernels.cu:\d+"
FAULTS = {
    "barrier_in_a_branch": r"waits at sync_block \(kernels.cu:\d+\), but thread \d+ has left the kernel",
    "barriers_on_two_lines": (
        r"waits at sync_block \(kernels.cu:\d+\), but thread \d+ waits at sync_block \(kernels.cu:\d+\)"
    ),
    "global_before_the_start": "element -1 of a global array of 64 is out of bounds",
    "global_null": "the array is null",
    "global_past_the_end": "element 64 of a global array of 64 is out of bounds",
    "lost_updates_between_blocks": r"element \d+ of a global array of 64 is read in a race .* block number",
    "misaligned_vector_index": "element 2 of a global array of 16 is misaligned",
    "race_between_blocks": "element 0 of a global array of 64 is written in a race .* of block number",
    "read_only_array_is_written": f"of a global array of 64 is read {RACE}|is written {RACE}",
    "shared_atomic_read_too_early": f"element 0 of shared array sum of 1 is (read|written) {RACE}",
    "shared_never_written": "element 5 of shared array tile of 64 is read before any thread",
    "shared_overwritten_too_early": f"shared array tile of 64 is (read|written) {RACE}",
    "shared_past_the_end": "element 63 of shared array tile of 63 is out of bounds",
    "shared_race": f"shared array tile of 64 is (read before any thread|read {RACE}|written {RACE})",
    "shared_race_between_warps": f"shared array tile of 64 is (read before|read {RACE}|written {RACE})",
    "shuffle_in_a_branch": r"waits at shuffle of mask 0xffffffff .*, but thread (7|39) has left",
    "shuffle_not_in_own_mask": "is not in the mask of its own shuffle of mask 0xff",
    "shuffle_outside_the_mask": "reads lane 9, which is not in the mask",
    "shuffle_with_two_masks": r"waits at shuffle_xor of mask 0xffffffff .* but thread \d+",
    "vector_past_the_end": "element 12 of a global array of 14 is out of bounds",
}


def test_host_every_faulty_kernel_has_its_message() -> None:
    assert simt_module().faulty_kernels() == sorted(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"host-{fault}")
def test_fault_is_found_and_named_in_any_order(fault: str, rng: torch.Generator) -> None:
    simt = simt_module()
    for _ in range(10):
        seed = _seed(rng)
        simt.set_seed(seed)
        with pytest.raises(RuntimeError) as error:
            simt.run_faulty(fault)
        message = str(error.value)
        assert re.match(rf"{fault}: block \(\d, 0, 0\), thread \d+.*kernels.cu:\d+", message), message
        assert re.search(FAULTS[fault], message), f"seed {seed}: {message}"


@pytest.mark.parametrize(
    ("x", "y", "threads", "shared_bytes", "message"),
    [
        pytest.param(0, 1, 32, 0, "a grid of 0 x 1 x 1 blocks", id="host-no_blocks"),
        pytest.param(1, 65536, 32, 0, "a grid of 1 x 65536 x 1 blocks", id="host-tall_grid"),
        pytest.param(1, 1, 0, 0, "0 threads a block", id="host-no_threads"),
        pytest.param(1, 1, 1025, 0, "1025 threads a block", id="host-too_many_threads"),
        pytest.param(1, 1, 32, 232449, "232449 bytes of shared memory", id="host-too_much_shared_memory"),
    ],
)
def test_launch_beyond_the_limits_of_cuda_raises(
    x: int, y: int, threads: int, shared_bytes: int, message: str
) -> None:
    simt_module().run_empty(2, 3, 1024, 232448)
    with pytest.raises(RuntimeError, match=f"empty: invalid launch: {message}"):
        simt_module().run_empty(x, y, threads, shared_bytes)


def test_host_right_kernels_are_right_in_any_order(rng: torch.Generator) -> None:
    simt = simt_module()
    for _ in range(20):
        seed = _seed(rng)
        simt.set_seed(seed)
        numbers = torch.randint(1000, (13 * 256,), generator=rng, dtype=torch.int32)
        sums = torch.full((2, 13), -1, dtype=torch.int32)
        simt.reduction(numbers.data_ptr(), 13, sums[0].data_ptr(), sums[1].data_ptr())
        assert (sums == numbers.view(13, 256).sum(1)).all(), f"seed {seed}"

        n, bins = 1000, 17
        counts, taken = torch.zeros(bins + 1, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
        numbers = numbers[:n] % bins
        simt.histogram(numbers.data_ptr(), n, bins, counts.data_ptr(), taken.data_ptr())
        assert counts.tolist() == [*torch.bincount(numbers, minlength=bins).tolist(), n], f"seed {seed}"
        assert (taken == 1).all(), f"seed {seed}"


def test_host_same_seed_gives_the_same_order(rng: torch.Generator) -> None:
    simt = simt_module()
    seed = _seed(rng)
    messages = []
    for _ in range(2):
        simt.set_seed(seed)
        with pytest.raises(RuntimeError) as error:
            simt.run_faulty("shared_race")
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=rng))
