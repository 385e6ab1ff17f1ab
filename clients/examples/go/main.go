// Asks, streams a turn, is cut in the middle of it, and resumes: the same request, with the token of the
// last event, over whatever connection there is.
//
// usage: run ADDRESS
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it, healthCheckConfig does nothing
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "chatbot-example/gen/chatbot/v1"
)

const question = "My server says too many open files. What should I do?"

func main() {
	config, err := os.ReadFile("../../service-config.json")
	check(err)
	proxy := newProxy(os.Args[1])
	// One channel for the whole process.
	channel, err := grpc.NewClient("passthrough:///"+proxy.address(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}))
	check(err)
	defer channel.Close()
	bot := pb.NewChatbotClient(channel)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// The request_id makes it safe for the library to repeat the call.
	answer, err := bot.Ask(ctx, &pb.AskRequest{Query: question, RequestId: uuid()}, grpc.WaitForReady(true))
	check(err)
	fmt.Println("asked: ", answer.Answer.Text)

	turn := &pb.ChatRequest{Query: question, RequestId: uuid()}
	var text string
	var sequence int64
	attempts := 0
	proxy.cutAfter(450) // bytes: behind the first event or so
	for done := false; !done; attempts++ {
		stream, err := bot.Chat(ctx, turn, grpc.WaitForReady(true))
		check(err)
		for {
			response, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				if !again(err) {
					log.Fatal(err)
				}
				fmt.Println("cut:   ", status.Code(err))
				time.Sleep(100 * time.Millisecond) // grows, with jitter, in a client that is no example
				break
			}
			event := response.Event
			if event.SequenceNumber <= sequence {
				log.Fatalf("event %d came twice", event.SequenceNumber)
			}
			sequence, turn.ResumeToken = event.SequenceNumber, event.ResumeToken
			if delta := event.GetTextDelta(); delta != "" {
				text += delta
			} else if end := event.GetTurnCompleted(); end != nil {
				text, done = end.Text, true
			} else if end := event.GetTurnFailed(); end != nil {
				log.Fatalf("the turn has failed: %s after %q", end.Reason, end.PartialText)
			}
		}
	}
	if attempts < 2 || text != answer.Answer.Text {
		log.Fatalf("%d attempts, %q", attempts, text)
	}
	fmt.Println("resumed:", text)
}

// again: whether the same request may be sent again. INTERRUPTED and the UPSTREAM_ reasons are of a turn
// that has failed, which was told by its turn_failed event before.
func again(err error) bool { return status.Code(err) == codes.Unavailable }

func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// cutter passes bytes on until it is told to cut. It stands for whatever cuts connections where you are.
type cutter struct {
	listener net.Listener
	lock     sync.Mutex
	open     []net.Conn
	left     int // bytes towards the client until everything is cut, once; 0: never
}

func newProxy(target string) *cutter {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	p := &cutter{listener: listener}
	go func() {
		for {
			near, err := listener.Accept()
			check(err)
			far, err := net.Dial("tcp", target)
			check(err)
			p.lock.Lock()
			p.open = append(p.open, near, far)
			p.lock.Unlock()
			go func() { io.Copy(far, near); far.Close() }()
			go p.pass(near, far)
		}
	}()
	return p
}

func (p *cutter) address() string { return p.listener.Addr().String() }

func (p *cutter) cutAfter(bytes int) {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.left = bytes
}

func (p *cutter) pass(near, far net.Conn) {
	defer near.Close()
	buffer := make([]byte, 65536)
	for {
		n, err := far.Read(buffer)
		if err != nil {
			return
		}
		p.lock.Lock()
		cut := p.left > 0 && n >= p.left
		if cut {
			n = p.left
		}
		p.left = max(0, p.left-n)
		near.Write(buffer[:n])
		if cut {
			for _, connection := range p.open {
				connection.Close()
			}
			p.open = nil
		}
		p.lock.Unlock()
	}
}
