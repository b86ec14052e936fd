# What CI runs.
ci:
    bash .ci/run

# All benches, and benches/RESULTS.md with its plots: about ten minutes, with --quick about five and rougher.
bench-page *how:
    benches/run {{how}}

# The bars of a long run, see tests/README.md. Hours.
long *words:
    tests/long {{words}}

# A server on the embedded store with the offline model.
run:
    cargo run --release -- serve
