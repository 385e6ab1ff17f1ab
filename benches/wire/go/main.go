// A bare grpc-go server of the contract: every answer is a constant, as those of constant.rs beside it.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "chatbot-wire/gen/chatbot/v1"
)

const (
	events = 100
	gap    = 20 * time.Millisecond
	id     = "0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77"
	piece  = "a piece of text "
)

type constant struct {
	pb.UnimplementedChatbotServer
}

func (constant) Ask(context.Context, *pb.AskRequest) (*pb.AskResponse, error) {
	return &pb.AskResponse{ConversationId: id, Answer: &pb.TurnCompleted{
		TurnId:       id,
		Text:         "Yes, and no more.",
		Answered:     true,
		Confidence:   1,
		FinishReason: pb.FinishReason_FINISH_REASON_STOP,
	}}, nil
}

func event(number int64, text string) *pb.ChatResponse {
	return &pb.ChatResponse{Event: &pb.Event{
		SequenceNumber: number,
		ResumeToken:    "000000000000000100000000000000ff",
		TurnId:         id,
		CreateTime:     &timestamppb.Timestamp{Seconds: 1_700_000_000, Nanos: 123_456_789},
		ConversationId: id,
		Event:          &pb.Event_TextDelta{TextDelta: text},
	}}
}

func (constant) Chat(request *pb.ChatRequest, stream grpc.ServerStreamingServer[pb.ChatResponse]) error {
	live := request.Query == "live"
	text := piece
	var ticker *time.Ticker
	if live {
		text = strings.Repeat(piece, 16)
		ticker = time.NewTicker(gap)
		defer ticker.Stop()
	}
	for number := int64(1); number <= events; number++ {
		if live && number > 1 {
			<-ticker.C
		}
		if err := stream.Send(event(number, text)); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("grpc-go %s address=%s\n", grpc.Version, listener.Addr())
	server := grpc.NewServer()
	pb.RegisterChatbotServer(server, constant{})
	log.Fatal(server.Serve(listener))
}
