package relay

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// frame is a message that is passed on as it came.
type frame struct{ data mem.BufferSlice }

// codec is gRPC's own for messages, and leaves frames as they are: a full push is
// megabytes, and what is not decoded needs no second copy and loses no field that
// this build has not heard of.
type codec struct{ messages encoding.CodecV2 }

// newCodec returns the codec.
func newCodec() codec { return codec{messages: encoding.GetCodecV2(protocodec.Name)} }

// Marshal implements encoding.CodecV2. A frame's buffers are gRPC's from here on.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		data := f.data
		f.data = nil
		return data, nil
	}
	out, err := c.messages.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	return out, nil
}

// Unmarshal implements encoding.CodecV2. A frame keeps the buffers until it is marshalled.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	if err := c.messages.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// Name implements encoding.CodecV2: on the wire it is the ordinary one.
func (c codec) Name() string { return protocodec.Name }
