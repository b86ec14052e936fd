# What CI runs.
ci:
    bash .ci/run

# The bars of a long run, see tests/README.md. Hours.
long *words:
    tests/long {{words}}

# The figures of benches/README.md.
bench:
    cargo bench --bench append --bench dispatch --bench fanout --bench history --bench hooks --bench resume --bench runs --bench http

# A server on the embedded store with the offline model.
run:
    cargo run --release -- serve
