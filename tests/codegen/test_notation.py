"""Formulas in the comments of kernels."""

import mixc
from mixc.codegen.notation import formula
from tests.build import contract

K, V = mixc.load("simple_gla").declared.decl("q").leaf(), mixc.load("simple_gla").declared.decl("v").leaf()


def test_products_of_matrices_stand_in_brackets_beside_products_entry_by_entry():
    S = mixc.load("simple_gla").declared.decl("S").leaf()
    read = contract(K, S, "V")
    assert formula(read * V + V * 2.0, {}) == "(q @ S) * v + v * 2"
    assert formula(read - (V - read), {}) == "q @ S - (v - (q @ S))"


def test_what_fills_more_than_a_line_is_cut_at_products_that_have_names():
    S = mixc.load("simple_gla").declared.decl("S").leaf()
    read = contract(K, S, "V")
    long = read
    for _ in range(12):
        long = long * V + V
    assert formula(long, {}) is None
    assert formula(read * V, {read: "o"}) == "(q @ S) * v"


def test_every_store_of_a_kernel_says_what_it_is():
    text = mixc.load("simple_gla").emit()
    assert "# o = scale * (" in text and "# dq = " in text and "# dS' = " in text
