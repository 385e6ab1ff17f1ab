"""The faults that the alerts name, each caused for real and undone again, in groups that do not disturb each
other."""

import resource
import signal
import threading
import uuid
from contextlib import contextmanager

from world import Load, Model, grpc, idle_connection, pb, rpc, wait_for


class Fault:
    """Something that goes wrong as long as it is entered, and the alerts that have to see it: by name, or by
    name and severity, each with labels that it has to have."""

    def __init__(self, what, cause, *alerts):
        self.what, self.cause, self.alerts = what, cause, alerts


def alert(name, severity=None, **labels):
    return {"alertname": name, **({"severity": severity} if severity else {}), **labels}


@contextmanager
def repeated(action, every=0.5):
    """Does something again and again."""
    stopped = threading.Event()

    def run():
        while not stopped.is_set():
            action()
            stopped.wait(every)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def limit(process, which, soft):
    """Sets a soft limit of a running process, and gives the old one."""
    old, hard = resource.prlimit(process.pid, which)
    resource.prlimit(process.pid, which, (min(soft, hard) if hard >= 0 else soft, hard))
    return old


@contextmanager
def crowd(replica, sources, each):
    """Clients that open connections and never use or close them, from several addresses."""
    held = {source: [] for source in sources}

    def fill():
        for source, connections in held.items():
            while len(connections) < each:
                connection = idle_connection(source, replica.port)
                if connection is None:
                    break
                connections.append(connection)
            # The server asks some to leave, and closes them.
            for connection in list(connections):
                if closed(connection):
                    connections.remove(connection)
                    connection.close()

    with repeated(fill, every=0.3):
        yield
    for connections in held.values():
        for connection in connections:
            connection.close()


def closed(connection):
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def descriptors_run_out(replica):
    """As many descriptors as are open now and two more, and clients that take those."""
    opened = int(replica.metric("chatbot_net_fds_open"))
    old = limit(replica, resource.RLIMIT_NOFILE, opened + 2)
    try:
        with crowd(replica, ["127.0.3.1"], 5):
            yield
    finally:
        limit(replica, resource.RLIMIT_NOFILE, old)


@contextmanager
def certificate(certificates, since, until):
    certificates.issue(since, until)
    try:
        yield
    finally:
        certificates.issue(0, 80)


@contextmanager
def redis_pauses(redis):
    """Every second it does nothing for a while."""
    with repeated(lambda: redis.call("CLIENT", "PAUSE", 350), every=1):
        yield


@contextmanager
def redis_freezes(redis):
    redis.child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.child.send_signal(signal.SIGCONT)


@contextmanager
def unreadable_knowledge(redis):
    """An entry of the knowledge log that no replica can read."""
    revision, order, changes = (
        "chatbot:{knowledge}:" + name for name in ("revision", "order", "changes")
    )
    # At once, as the service does it: what is taught between two steps would hide the first.
    teach = (
        "local revision = redis.call('INCR', KEYS[1])"
        " redis.call('ZADD', KEYS[2], revision, ARGV[1])"
        " return redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])"
    )
    answer = redis.call("EVAL", teach, 3, revision, order, changes, 999, "no JSON")
    if answer != ":1":
        raise AssertionError(f"Redis: {answer}")
    try:
        yield
    finally:
        redis.call("ZREM", order, 999)
        redis.call("HDEL", changes, 999)


@contextmanager
def model_is(model, mode):
    model.mode = mode
    try:
        yield
    finally:
        model.mode = "good"


@contextmanager
def both(one, other):
    with one, other:
        yield


@contextmanager
def more_load(replica, chats):
    load = Load(replica, chats)
    try:
        yield
    finally:
        load.stop()


@contextmanager
def full_disk(replica):
    """Its files cannot grow, nor be written beyond their beginning."""
    old = limit(replica, resource.RLIMIT_FSIZE, 0)
    try:
        yield
    finally:
        limit(replica, resource.RLIMIT_FSIZE, old)


@contextmanager
def dead(replica):
    replica.kill()
    try:
        yield
    finally:
        replica.start()


@contextmanager
def dies_with_its_turns(replica, other):
    """It is killed with two turns: of one a part was seen, of one nothing yet. Their readers go on at the other
    replica, which takes both over."""
    requests = [
        pb.ChatRequest(query=f"{word} {uuid.uuid4()}", request_id=str(uuid.uuid4()))
        for word in ("hold", "silent")
    ]
    with grpc.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
        bot = rpc.ChatbotStub(channel)
        for request, events in zip(requests, (2, 1)):
            # Refused while all slots are taken: then the next try.
            wait_for("the turn begins", lambda: seen(bot, request, events))
            wait_for("the model is asked", lambda: request.query in Model.asked)
        replica.kill()
    with grpc.insecure_channel(f"127.0.0.1:{other.port}") as channel:
        bot = rpc.ChatbotStub(channel)
        ends = {wait_for("the turn's end", lambda: end(bot, request)) for request in requests}
    if ends != {"INTERRUPTED", "completed"}:
        raise AssertionError(f"the turns ended as {ends}")
    try:
        yield
    finally:
        replica.start()


def seen(bot, request, events):
    """Whether so many events of a turn could be read."""
    stream = bot.Chat(request, timeout=20)
    try:
        for _ in range(events):
            next(stream)
    except (grpc.RpcError, StopIteration):
        return False
    return True


def end(bot, request):
    """How a turn ends; `None` if that could not be read."""
    last = None
    try:
        for response in bot.Chat(request, timeout=20):
            last = response.event
    except grpc.RpcError:
        pass
    if last is None:
        return None
    if last.HasField("turn_failed"):
        return last.turn_failed.reason
    return "completed" if last.HasField("turn_completed") else None


def groups(world):
    """The faults in the order in which they are caused; those of a group at the same time. The model comes last:
    its breaker stays open for a while, and takes answers with it."""
    first, second, file, redis = world.first, world.second, world.file, world.redis
    crowds = [f"127.0.1.{number}" for number in range(1, 5)]
    return {
        "limits": [
            Fault(
                "clients of many addresses that never close",
                lambda: crowd(first, crowds, 18),
                alert("ChatbotConnectionsNearCap", pod=first.name),
                alert("ChatbotConnectionsRefused", pod=first.name),
            ),
            Fault(
                "a client that opens a connection for each call",
                lambda: crowd(second, ["127.0.2.1"], 22),
                alert("ChatbotPeerHogsConnections", pod=second.name, peer="127.0.2.1"),
            ),
            Fault(
                "a certificate that nobody has renewed",
                lambda: certificate(world.certificates, -80, 1),
                alert("ChatbotCertificateEndsSoon", "warning", pod=file.name),
                alert("ChatbotCertificateEndsSoon", "critical", pod=file.name),
            ),
            Fault(
                "a Redis that pauses",
                lambda: redis_pauses(redis),
                alert("ChatbotStoreSlow", job=first.job),
            ),
            Fault(
                "an entry that cannot be read",
                lambda: unreadable_knowledge(redis),
                alert("ChatbotKnowledgeBehind", pod=first.name),
                alert("ChatbotKnowledgeBehind", pod=second.name),
            ),
        ],
        "death": [
            Fault(
                "a replica that dies with its turns",
                lambda: dies_with_its_turns(first, second),
                alert("ChatbotReplicaDown", pod=first.name),
                alert("ChatbotTakeovers", job=first.job),
                alert("ChatbotTurnsInterrupted", job=first.job),
            ),
            Fault(
                "a full disk",
                lambda: full_disk(file),
                alert("ChatbotStoreWritesFail", pod=file.name),
                alert("ChatbotStoreDown", pod=file.name),
                alert("ChatbotNotReady", pod=file.name),
                alert("ChatbotNoReplicaReady", job=file.job),
            ),
        ],
        "loss": [
            Fault(
                "a Redis that is frozen",
                lambda: redis_freezes(redis),
                alert("ChatbotStoreDown", pod=first.name),
                alert("ChatbotStoreDown", pod=second.name),
                alert("ChatbotNoReplicaReady", job=first.job),
            ),
            Fault("no replica at all", lambda: dead(file), alert("ChatbotAbsent", job=file.job)),
        ],
        "descriptors": [
            Fault(
                "no descriptor left",
                lambda: descriptors_run_out(second),
                alert("ChatbotDescriptorsNearLimit", pod=second.name),
                alert("ChatbotAcceptShortage", pod=second.name),
            ),
        ],
        "model": [
            Fault(
                "a model that takes seconds to begin, and too many questions",
                lambda: both(model_is(world.first_model, "slow"), more_load(first, 4)),
                alert("ChatbotFirstTextSlow", job=first.job),
                alert("ChatbotOverloaded", job=first.job),
            ),
            Fault(
                "a model that fails",
                lambda: model_is(world.second_model, "broken"),
                alert("ChatbotBreakerOpen", pod=second.name),
                alert("ChatbotTurnsFailing", job=second.job),
                alert("ChatbotErrorBudgetBurnsFast", job=second.job),
                alert("ChatbotErrorBudgetBurnsSlowly", job=second.job),
            ),
        ],
    }
