"""The teacher: exact moving averages over parameters alone, untouched at momentum 1."""

import math

import pytest
import torch
from torch import nn

from selfcluster.models.teacher import Teacher, cosine_momentum


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_it_starts_as_a_copy_that_no_gradient_reaches():
    student = network()
    teacher = Teacher.of(student)
    x = torch.randn(5, 4)
    assert torch.equal(teacher(x), student(x))
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_the_update_is_the_moving_average():
    student, teacher = network(0), Teacher(network(1))
    before = [p.double().clone() for p in teacher.parameters()]
    teacher.update(student, 0.9)
    for old, new, theirs in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new.double(), 0.9 * old + 0.1 * theirs.double(), rtol=0, atol=1e-7)


def test_momentum_one_leaves_it_untouched_whatever_the_student():
    student, teacher = network(0), Teacher(network(1))
    with torch.no_grad():
        student[0].weight.fill_(math.inf)
    before = [p.clone() for p in teacher.parameters()]
    teacher.update(student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_momentum_zero_copies_exactly():
    student, teacher = network(0), Teacher(network(1))
    teacher.update(student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_buffers_are_its_own():
    student = network()
    teacher = Teacher.of(student)
    student(torch.randn(8, 4))
    teacher.update(student, 0.0)
    assert torch.equal(teacher.network[1].running_mean, torch.zeros(3))
    teacher(torch.ones(8, 4))  # in training mode its statistics are those of its own batches
    assert not torch.equal(teacher.network[1].running_mean, torch.zeros(3))
    teacher.copy_(student)
    assert torch.equal(teacher.network[1].running_mean, student[1].running_mean)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match=r"teacher and student differ in \['1\.bias'"):
        Teacher(nn.Sequential(nn.Linear(4, 3))).update(network(), 0.5)


def test_the_momentum_rises_along_half_a_cosine():
    assert cosine_momentum(0.996, 0.0) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 0.5) == pytest.approx(0.998)
    assert cosine_momentum(0.99, 0.25) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 4) + 1) / 2)
    assert cosine_momentum(0.996, 1.0) == 1.0
    assert cosine_momentum(0.5, 0.7, final=0.5) == 0.5
