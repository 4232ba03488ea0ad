# Ambit: what one does with this repository. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Nothing here downloads another Go: the installed one is used, or the build fails and says so.
export GOTOOLCHAIN := local
GO ?= go
OUT ?= out
# Time for each fuzz target of `make fuzz`.
FUZZTIME ?= 20s

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sort

.PHONY: build
build: ## Build everything; the binaries go to out/bin. Needs only Go.
	$(GO) build ./...
	mkdir -p $(OUT)/bin
	CGO_ENABLED=0 $(GO) build -trimpath -o $(OUT)/bin/ ./cmd/...

.PHONY: test
test: ## Everything that must pass: lint, unit and netns tests with -race, interop, end to end. Needs root.
	$(GO) run ./tests/run

.PHONY: test-fast
test-fast: ## The stages of `make test` that need no cluster.
	$(GO) run ./tests/run -fast

.PHONY: lint
lint: ## gofmt, go vet, staticcheck.
	$(GO) run ./tests/run -stages gofmt,vet,staticcheck

.PHONY: generate
generate: ## Write generated code anew: protobuf, BPF objects, CRDs. Needs protoc, its includes and clang.
	$(GO) generate ./...

.PHONY: generate-check
generate-check: generate ## Fail if the committed generated code is not what `make generate` writes.
	@changed=$$(git status --porcelain -- '*.pb.go' 'bpf/*_bpfel.*' charts/base/files); \
	if [[ -n $$changed ]]; then echo "committed generated code is not current:"; echo "$$changed"; exit 1; fi

.PHONY: golden
golden: ## Accept new golden files and dependency lists; look at the diff before you commit it.
	$(GO) test ./charts ./tests/arch -update

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME each.
	$(GO) run ./tests/run -fuzz $(FUZZTIME)

.PHONY: bench
bench: ## Measure direct against meshed traffic on network namespaces. Needs root and a quiet machine.
	mkdir -p $(OUT)/bin
	CGO_ENABLED=0 $(GO) build -trimpath -o $(OUT)/bin/ ./cmd/ztunnel
	$(GO) run ./tests/bench -ztunnel $(OUT)/bin/ztunnel

.PHONY: bench-waypoint
bench-waypoint: ## Measure pushes to a waypoint and requests through it. Needs root and a quiet machine.
	mkdir -p $(OUT)/bin
	CGO_ENABLED=0 $(GO) build -trimpath -o $(OUT)/bin/ ./cmd/ztunnel ./cmd/istiod ./cmd/waypoint-agent
	$(GO) run ./tests/bench -waypoint -ztunnel $(OUT)/bin/ztunnel -istiod $(OUT)/bin/istiod -agent $(OUT)/bin/waypoint-agent

# The images, the two-node Kubernetes and the demo.
-include tests/cluster/cluster.mk

.PHONY: clean
clean: ## Remove what was built. The cached Kubernetes stays; see tests/cluster.
	rm -rf $(OUT) bin
