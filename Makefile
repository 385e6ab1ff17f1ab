# The steps of CI, and bench. Each one runs alone; `.ci/run` installs what they need and runs them in
# this order.
.DEFAULT_GOAL := help
.PHONY: help fmt lint doc test clients observability bench gates deny engine e2e
.PHONY: chart chart-lint chart-render chart-unit chart-policy

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 14

fmt: ## the sources are formatted
	cargo fmt --check

lint: ## clippy, warnings are errors
	cargo clippy --all-targets --all-features --locked -- -D warnings

doc: ## the documentation builds, without a broken link
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked

test: ## the README's test command
	cargo test

clients: ## the Python client and the examples of the other languages, against the debug build (needs redis-server)
	cargo build
	clients/python/check
	clients/examples/check

observability: ## dashboard and alerts, by a real Prometheus (needs prometheus, redis-server, openssl; pip install -r tests/observability/requirements.txt)
	cargo build
	$${CHATBOT_PYTHON:-python3} tests/observability/run

bench: ## the wire, the parts, search, the log, what is before a model, memory of idle connections, probes under load, the start; no step of CI, since machines are noisy
	cargo bench --features jemalloc --bench wire
	cargo bench --bench parts
	cargo bench --bench search
	cargo bench --bench log
	cargo bench --features jemalloc --bench model
	cargo bench --features jemalloc --bench idle
	cargo bench --bench probe -- --seconds 20
	cargo bench --features jemalloc --bench start

gates: ## instructions and writes for a call and for an event, as recorded (needs valgrind)
	cargo bench --profile bare --features jemalloc --bench wire -- --gates

deny: ## licences, sources and duplicates of the dependencies (cargo install cargo-deny)
	cargo deny --all-features --locked --log-level error check bans licenses sources

chart: chart-lint chart-render chart-unit chart-policy ## chart, manifests, compose file and Dockerfile, without a cluster (pip install -r tests/chart/requirements.txt)

chart-lint: ## of these: lint by Helm 4 and 3, yamllint, hadolint; what is generated is up to date
	tests/chart/check lint docs drift

chart-render: ## of these: strict schemas of Kubernetes and of custom resources; values that cannot work are refused
	tests/chart/check render values

chart-unit: ## of these: what the rendered objects promise
	tests/chart/check unit

chart-policy: ## of these: checkov and kube-score
	tests/chart/check policy

engine: ## the image and the compose file, on a Docker engine
	tests/engine/run

e2e: ## chart and manifests, on the cluster of KUBECONFIG: one pod, then replicas with users (needs images of chatbot and redis there)
	tests/e2e/run
