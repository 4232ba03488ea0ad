# Targets that need the test cluster: root, Debian, and nothing else. The top Makefile includes this file.
CLUSTER := go run ./tests/cluster/cmd/cluster

.PHONY: images cluster-up cluster-down kubectl demo demo-down e2e conformance conformance-off

images: ## Build the container images without Docker into out/images
	go run ./tests/images/cmd/images

cluster-up: ## Start the two-node test cluster
	$(CLUSTER) up

cluster-down: ## End the test cluster and remove its state
	$(CLUSTER) down

kubectl: ## Run kubectl on the test cluster: make kubectl ARGS="get pods -A"
	@$(CLUSTER) kubectl $(ARGS)

demo: ## Show the mesh on a real Kubernetes: label a namespace under live traffic
	go run ./tests/demo

demo-down: ## End what the demo started
	$(CLUSTER) down

e2e: ## Run the end-to-end tests on a fresh cluster
	go test -count=1 -timeout 20m ./tests/e2e/...

conformance: ## Run the Gateway API conformance suite, every profile: make conformance ARGS="--set mesh --report ''"
	go run ./tests/cluster/cmd/conformance $(ARGS)

conformance-off: ## Run its mesh tests without the mesh, where all but one must fail
	go run ./tests/cluster/cmd/conformance --set mesh --mesh=false --consistency 10s $(ARGS)
