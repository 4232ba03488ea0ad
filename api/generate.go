// Package api has no code of its own: it is the root of the protobuf messages
// that cross process boundaries, each in a package below, and holds the command
// that generates them (protoc from Debian's protobuf-compiler and
// libprotobuf-dev, plug-ins from this module's go.mod).
package api

//go:generate sh -c "go build -o ../bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc && PATH=$PWD/../bin:$PATH protoc -I . --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative workload/workload.proto security/authorization.proto zds/zds.proto ca/ca.proto"
