# The image of the chatbot: one program on a base with the C library and nothing else, no shell.
#
#   docker build --tag chatbot:dev .
#
# It needs BuildKit, for the cache mounts. There is no "# syntax=" line on purpose: the frontend
# that it names would be pulled, and the one built into the engine knows all that is used here.

# Both bases can be replaced, as where there is no way to their registries. They belong together: the
# C library of the first must not be newer than that of the second. Not a static musl build: musl's
# allocator is several times slower.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
# jemalloc is built by make, which the slim image has not got; a base that brings it needs no network
# for this. Any version does, so none is named that the next point release of Debian would remove.
# hadolint ignore=DL3008
RUN command -v make >/dev/null \
 || { apt-get update \
 && apt-get install --yes --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
# Without rust-toolchain.toml: the base image is the toolchain, and rustup would fetch components
# for lints that no build needs. Benches and examples are not compiled, but Cargo.toml names them.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto/ proto/
COPY knowledge/ knowledge/
COPY benches/ benches/
COPY examples/ examples/
COPY src/ src/
# The caches outlive the build, so a change in src/ compiles this crate only. Cargo tells by the
# time of a file whether it changed, and a checkout can have files that are older than what another
# checkout left in the cache: they all are touched, or the other one's program would be the result.
RUN --mount=type=cache,id=chatbot-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=chatbot-target,target=/src/target,sharing=locked \
    find build.rs proto knowledge src -type f -exec touch {} + \
 && cargo build --release --locked --features jemalloc --bin chatbot \
 && install -D -m 0755 target/release/chatbot /image/usr/local/bin/chatbot \
 && install -d -m 0750 /image/data

FROM ${RUNTIME_IMAGE}
ARG RUNTIME_IMAGE
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="chatbot" \
      org.opencontainers.image.description="A gRPC chatbot service for Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${RUNTIME_IMAGE}"
COPY LICENSE /usr/share/licenses/chatbot/LICENSE
COPY --from=build /image/usr/local/bin/chatbot /usr/local/bin/chatbot
# The store's folder belongs to the server's user, and so does a new named volume that is mounted
# here. No VOLUME: each container without a volume of its own would leave a nameless one behind.
COPY --from=build --chown=65532:65532 /image/data /data
# The default store is data/chatbot.redb, relative: from here that is in /data. An environment
# variable would do too, but it would win over the config file that somebody mounts.
WORKDIR /
# By number, so that Kubernetes can tell it is not root (runAsNonRoot).
USER 65532:65532
# 8980: the chatbot. 8981: health and metrics, plaintext.
EXPOSE 8980 8981
STOPSIGNAL SIGTERM
# For docker and compose; Kubernetes ignores it and probes by itself.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/chatbot", "health"]
ENTRYPOINT ["/usr/local/bin/chatbot"]
