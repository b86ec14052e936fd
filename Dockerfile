# raddle in a container: see docs/OPERATING.md, "In a container".
#
#   docker build -t raddle .
#   docker run --init -p 7878:7878 -v raddle-data:/var/lib/raddle -v ./raddle.toml:/etc/raddle/raddle.toml:ro raddle

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Features of the build, such as `otel`.
ARG FEATURES=""
COPY Cargo.toml Cargo.lock clippy.toml ./
COPY domain domain
COPY actors actors
COPY src src
COPY benches benches
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --features "$FEATURES" \
    && install -D target/release/raddle /out/raddle

FROM debian:bookworm-slim
# Certificates for model providers and webhooks, and the sandbox's outer layer, for where the host allows namespaces.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates bubblewrap \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent raddle \
    && install -d -o raddle -g raddle -m 0700 /var/lib/raddle
COPY --from=build /out/raddle /usr/local/bin/raddle
USER 10001:10001
# Beyond loopback the server wants keys; it says so where there are none.
ENV RADDLE_LISTEN=0.0.0.0:7878 \
    RADDLE_DATA_DIR=/var/lib/raddle \
    RADDLE_LOG_FORMAT=json
VOLUME /var/lib/raddle
EXPOSE 7878
# Drains. Docker kills after ten seconds unless it is told to wait: `docker stop --time 45`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/raddle", "doctor", "--ready"]
ENTRYPOINT ["/usr/local/bin/raddle"]
CMD ["serve"]
