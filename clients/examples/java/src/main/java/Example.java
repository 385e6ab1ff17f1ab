import com.google.gson.Gson;
import io.chatbot.v1.AskRequest;
import io.chatbot.v1.ChatRequest;
import io.chatbot.v1.ChatResponse;
import io.chatbot.v1.ChatbotGrpc;
import io.chatbot.v1.Event;
import io.grpc.Channel;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;

/**
 * Asks, streams a turn, is cut in the middle of it, and resumes: the same request, with the token of the last event,
 * over whatever connection there is.
 *
 * <p>usage: run ADDRESS
 */
public final class Example {
  private static final String QUESTION = "My server says too many open files. What should I do?";

  public static void main(String[] args) throws Exception {
    String[] address = args[0].split(":");
    Cutter cutter = new Cutter(new InetSocketAddress(address[0], Integer.parseInt(address[1])));
    @SuppressWarnings("unchecked")
    Map<String, ?> config =
        new Gson().fromJson(Files.readString(Path.of("../../service-config.json")), Map.class);
    // One channel for the whole process.
    ManagedChannel channel =
        NettyChannelBuilder.forAddress("127.0.0.1", cutter.port())
            .usePlaintext()
            .defaultServiceConfig(config)
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(20, TimeUnit.SECONDS)
            .build();
    try {
      run(channel, cutter);
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
      cutter.close();
    }
  }

  private static void run(Channel channel, Cutter cutter) throws InterruptedException {
    ChatbotGrpc.ChatbotBlockingStub bot =
        ChatbotGrpc.newBlockingStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS).withWaitForReady();

    // The request_id makes it safe for the library to repeat the call.
    AskRequest question = AskRequest.newBuilder().setQuery(QUESTION).setRequestId(UUID.randomUUID().toString()).build();
    String asked = bot.ask(question).getAnswer().getText();
    System.out.println("asked:  " + asked);

    ChatRequest.Builder turn = ChatRequest.newBuilder().setQuery(QUESTION).setRequestId(UUID.randomUUID().toString());
    StringBuilder text = new StringBuilder();
    long sequence = 0;
    int attempts = 0;
    cutter.cutAfter(450); // bytes: behind the first event or so
    for (boolean done = false; !done; attempts++) {
      try {
        Iterator<ChatResponse> events = bot.chat(turn.build());
        while (events.hasNext()) {
          Event event = events.next().getEvent();
          if (event.getSequenceNumber() <= sequence) {
            throw new IllegalStateException("event " + event.getSequenceNumber() + " came twice");
          }
          sequence = event.getSequenceNumber();
          turn.setResumeToken(event.getResumeToken());
          switch (event.getEventCase()) {
            case TEXT_DELTA -> text.append(event.getTextDelta());
            case TURN_COMPLETED -> {
              text.setLength(0);
              text.append(event.getTurnCompleted().getText());
              done = true;
            }
            case TURN_FAILED -> throw new IllegalStateException("the turn has failed: " + event.getTurnFailed());
            default -> {}
          }
        }
      } catch (StatusRuntimeException error) {
        // INTERRUPTED and the UPSTREAM_ reasons are of a turn that has failed, which was told before.
        if (error.getStatus().getCode() != Status.Code.UNAVAILABLE) {
          throw error;
        }
        System.out.println("cut:    " + error.getStatus().getCode());
        Thread.sleep(100); // grows, with jitter, in a client that is no example
      }
    }
    if (attempts < 2 || !text.toString().equals(asked)) {
      throw new IllegalStateException(attempts + " attempts, " + text);
    }
    System.out.println("resumed: " + text);
  }

  /** Passes bytes on until it is told to cut. It stands for whatever cuts connections where you are. */
  private static final class Cutter {
    private final ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
    private final List<Socket> open = new CopyOnWriteArrayList<>();
    private int left; // bytes towards the client until everything is cut, once; 0: never

    Cutter(InetSocketAddress target) throws IOException {
      start(
          () -> {
            while (true) {
              Socket near = listener.accept();
              Socket far = new Socket(target.getAddress(), target.getPort());
              open.addAll(List.of(near, far));
              start(() -> near.getInputStream().transferTo(far.getOutputStream()));
              start(() -> pass(far.getInputStream(), near.getOutputStream()));
            }
          });
    }

    int port() {
      return listener.getLocalPort();
    }

    synchronized void cutAfter(int bytes) {
      left = bytes;
    }

    private void pass(InputStream from, OutputStream to) throws IOException {
      byte[] buffer = new byte[65536];
      for (int n = from.read(buffer); n > 0; n = from.read(buffer)) {
        boolean cut;
        synchronized (this) {
          cut = left > 0 && n >= left;
          n = cut ? left : n;
          left = Math.max(0, left - n);
        }
        to.write(buffer, 0, n);
        if (cut) {
          end();
        }
      }
    }

    private void end() throws IOException {
      for (Socket socket : open) {
        socket.close();
      }
      open.clear();
    }

    void close() throws IOException {
      listener.close();
      end();
    }

    private interface Work {
      void run() throws IOException;
    }

    private static void start(Work work) {
      Thread thread =
          new Thread(
              () -> {
                try {
                  work.run();
                } catch (IOException end) {
                  // The connection is over.
                }
              });
      thread.setDaemon(true);
      thread.start();
    }
  }
}
