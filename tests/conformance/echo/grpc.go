package main

import (
	"context"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The method is that of Istio's echo. Its request and answer have one string, in
// field 1, which is what StringValue is on the wire.
const (
	echoService = "proto.EchoTestService"
	echoMethod  = "/" + echoService + "/Echo"
)

type echoServer interface {
	echo(context.Context) (*wrapperspb.StringValue, error)
}

// grpcEcho answers on one port.
type grpcEcho struct{ port int }

func (s grpcEcho) echo(ctx context.Context) (*wrapperspb.StringValue, error) {
	r := request{port: s.port, proto: "GRPC", header: http.Header{}}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		for name, values := range md {
			if name == ":authority" {
				r.host = values[0]
			}
			for _, v := range values {
				r.header.Add(name, v)
			}
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		r.ip = addressOf(p.Addr.String())
	}
	return wrapperspb.String("StatusCode=200\n" + r.String()), nil
}

// newGRPC makes the server of a port.
func newGRPC(port int) *grpc.Server {
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: echoService,
		HandlerType: (*echoServer)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(&wrapperspb.StringValue{}); err != nil {
				return nil, err
			}
			return srv.(echoServer).echo(ctx)
		}}},
	}, grpcEcho{port})
	return s
}
