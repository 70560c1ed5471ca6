"""Values of kernels are called by what they are made of, by the spec's own names, cotangents by what they are of."""

import re

import mixc


def assigned(text: str, kernel: str) -> set[str]:
    """The names of a kernel's tiles."""
    body = re.split(r"\n(?=class |def |@)", text.split(f"def {kernel}(")[1])[0]
    return {name.strip() for found in re.findall(r"\n +([\w, ]+) = ", body) for name in found.split(",")}


def test_a_delta_rule_has_the_names_of_its_papers() -> None:
    text = mixc.load("gated_delta_rule").emit()
    forward, backward = assigned(text, "gated_delta_rule_fwd"), assigned(text, "gated_delta_rule_bwd")
    assert {"k_beta_k", "L", "X", "v_less_k_S", "u", "A", "q_S", "o", "S_next"} <= forward
    assert {"du", "dA", "dq", "dv", "d_k_beta_k", "d_beta_k", "dbeta", "dS_next"} <= backward
    assert {"u", "S_next"} <= assigned(text, "gated_delta_rule_bwd_chunk_on")
    assert "dL" not in forward | backward  # -dv u^T below the diagonal, which stands in the product with the decays


def test_values_have_the_names_that_the_spec_gives_them() -> None:
    text = mixc.load("lstm").emit()
    assert {"f_in", "z_in"} <= assigned(text, "lstm_fwd")
    assert {"o", "f", "i2", "z"} <= assigned(text, "lstm_bwd")  # `i` counts tokens


def test_letters_that_the_spec_has_are_not_taken() -> None:
    body = """mixer letters(K, V) {
        in A[K], D[K], X[V], L where 0 <= L <= 1, u where u <= 0
        state S[K, V]
        S = exp(u) * S
        S = S + D * (L * (X - D @ S))
        out o[V] = A @ S
    }"""
    made = mixc.loads(body)
    forward = assigned(made.emit(), "letters_fwd_for_K")
    assert {"scores_A_D", "inverse", "lower", "solved", "decay"} <= forward
    assert {"A", "D", "X", "L", "u"} <= forward  # the loaded ones, and no other tile
    assert not {"A2", "D2", "X2", "L2", "u2"} & forward


def test_a_name_of_many_words_is_one_for_the_operation() -> None:
    body = """mixer long(K, V) {
        in query_of_this_token[K], key_of_this_token[K], value[V]
        state S[K, V]
        S = S + key_of_this_token * value
        out o[V] = query_of_this_token @ S
    }"""
    assert all(len(name) < 25 for name in assigned(mixc.loads(body).emit(), "long_fwd"))


def test_no_tile_is_called_what_a_kernel_has_for_its_own_use() -> None:
    """A sum of `db` over the chunks is `db_sum`, a block of V is BV, and a local may be called so too."""
    body = """mixer own(K, V) {
        in q[K], k[K], v[V], x[V]
        param b[V]
        state S[K, V]
        BV = tanh(v * x)
        db_sum = sigmoid(b * x)
        S_next = BV * db_sum
        S = S + k * S_next
        out o[V] = q @ S + S_next * db_sum * BV
    }"""
    names = assigned(mixc.loads(body).emit(), "own_bwd")
    assert {"BV2", "db_sum2"} <= names and "BV" not in names


def test_an_emitted_file_begins_with_its_spec_and_says_what_names_mean() -> None:
    mixer = mixc.load("gated_delta_rule")
    head = mixer.emit().split('"""')[1]
    assert all(line in head for line in mixer.text.splitlines())
    assert "u             what the rows write, corrected" in head and "scores" not in head
    assert not any(line != line.rstrip() for line in head.splitlines())
    assert "In the kernels" not in mixc.load("lstm").emit()


def test_what_an_operation_writes_twice_has_a_name() -> None:
    text = mixc.load("short_conv").emit(shape={"W": 4})
    assert re.search(r"\n +y = (\w+) \* tl.sigmoid\(\1\)\n", text)


def test_lines_of_kernels_are_no_longer_than_a_page_is_wide() -> None:
    text = mixc.load("kda").emit()
    body = text[text.index("def kda_fwd("):text.index("class Kda(")]
    assert "k = tl.load(rows_at(k_ptr, row, held, k_st, in_K, SIGN), mask=has_K[None, :], other=0.0)\n" in body
    assert "tl.store(state_at(S_final, seq * H + head, in_K, in_V, K, V), S, mask=" in body
    assert not any(len(line) > 130 for line in body.splitlines() if "tl.load(" in line or "tl.store(" in line)


def test_rows_that_one_kernel_hands_to_another_are_called_what_they_are() -> None:
    """They were handed, handed2, ... handed13: one name of a value where it is formed, and another where it is read."""
    text = mixc.load("gated_deltaproduct").emit(shape={"K": 128, "V": 128})
    first, last = (assigned(text, f"gated_deltaproduct_{k}") for k in ("fwd_for_K", "bwd_along_K"))
    assert {"X", "u"} <= first and {"u_handed", "q_beta_k_handed"} <= last
    assert not re.search(r"\bhanded\d*_ptr", text)
