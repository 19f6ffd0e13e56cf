"""The setting of the C library."""

import platform

import pytest
import torch

from crest.lab.run.freed_memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose mallopt it is")
def test_memory_that_was_freed_comes_without_page_faults():
    import resource

    def faults_of_ten_tensors():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**23)  # 32 MiB each
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert keep_freed_memory()
    faults_of_ten_tensors()
    assert faults_of_ten_tensors() < 1000  # 8192 pages each if the system cleared them again
