//! Accepts connections until the drain, and hands each to its driver.
//!
//! The loop never spins and never stops. Without a descriptor left, `accept` fails at once, again and
//! again, while the connection stays in the queue: a library's loop burnt a whole core on that, and
//! logged nothing (measured). Here a descriptor kept in reserve is given up to take that connection
//! and reset it, and the loop pauses, longer each time, until somebody leaves.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, error, info, warn};

use super::{
    call::Routes,
    connection::{Reason, Terms, drive},
    governor::{Governor, Permit, Refusal},
    metrics::Metrics,
    tls::Tls,
};
use crate::{config::Connections, domain::PeerCertificate, lifecycle::Lifecycle};

/// Pause after an accept that failed for want of something, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// How often the same trouble is logged.
const LOG_AGAIN: Duration = Duration::from_secs(1);
/// Time for the kernel to deliver what a peer does not acknowledge; HTTP/2's own pings cannot end a
/// connection whose peer has stopped reading.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The server of the main port, bound and not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    governor: Governor,
    tls: Option<Tls>,
    terms: Arc<Terms>,
    metrics: Metrics,
}

impl Server {
    /// A server on `listener` for at most `most` connections.
    pub fn new(
        listener: std::net::TcpListener,
        most: u64,
        limits: &Connections,
        tls: Option<Tls>,
        http1: bool,
        life: &Lifecycle,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Self {
        let governor = Governor::new(
            usize::try_from(most).unwrap_or(usize::MAX),
            usize::try_from(limits.max_per_peer).unwrap_or(usize::MAX),
            limits.exempt_peers.clone(),
        );
        let metrics = Metrics::new(governor.clone(), registry);
        if let Some(tls) = &tls {
            tls.register(registry);
        }
        let (limits, writes) = (limits.clone(), metrics.writes.clone());
        let terms = Arc::new(Terms { limits, http1, life: life.clone(), writes });
        Self { listener, governor, tls, terms, metrics }
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `routes` until the drain; the connections that there are then end by themselves, as
    /// tasks of the lifecycle.
    pub async fn run(self, routes: impl Routes) {
        let Self { listener, governor, tls, terms, metrics } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return error!(%error, "cannot listen"),
        };
        let draining = terms.life.draining().clone();
        let mut reserve = Reserve::new();
        let mut trouble = Trouble::default();
        let mut spread = Spread::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_shortage(&error) => {
                    metrics.shortages.inc();
                    reserve.reset_one(&listener);
                    let pause = trouble.pause(&error, &governor);
                    tokio::select! {
                        biased;
                        () = draining.cancelled() => return,
                        () = governor.freed() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    continue;
                }
                // The peer was gone before it was taken; nothing has to be done about it.
                Err(error) => {
                    debug!(%error, "accept failed");
                    continue;
                }
            };
            let permit = match governor.admit(address) {
                Ok(permit) => permit,
                Err(refusal) => {
                    reset(&stream);
                    metrics.refused(refusal);
                    trouble.refused(refusal, address);
                    continue;
                }
            };
            trouble.over();
            metrics.opened.inc();
            let connection = Connection {
                stream,
                address,
                permit,
                tls: tls.clone(),
                terms: Arc::clone(&terms),
                metrics: metrics.clone(),
                spread: spread.next(),
            };
            terms.life.spawn_work(connection.run(routes.clone()));
        }
    }
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    permit: Permit,
    tls: Option<Tls>,
    terms: Arc<Terms>,
    metrics: Metrics,
    spread: f64,
}

impl Connection {
    /// Its life. What a future takes as arguments and takes apart inside, it keeps twice for as long as
    /// it lives; so it is taken apart here, since idle connections are many.
    fn run(self, routes: impl Routes) -> impl Future<Output = ()> + Send {
        let Self { stream, address, permit, tls, terms, metrics, spread } = self;
        async move {
            if let Err(error) = prepare(&stream) {
                // Such as a peer that is gone already.
                debug!(%error, peer = %address, "socket options were refused");
            }
            let activity = permit.activity().clone();
            let mut extensions = http::Extensions::new();
            let reason = match tls {
                None => Box::pin(drive(stream, routes, activity, extensions, terms, spread)).await,
                Some(tls) => {
                    // In a box of its own, which is gone after it: it takes four kilobytes.
                    let shake_hands = Box::pin(tls.accept(stream, terms.limits.preface_timeout));
                    let handshake = tokio::select! {
                        biased;
                        () = terms.life.draining().cancelled() => {
                            return metrics.closed(Reason::Drain);
                        }
                        handshake = shake_hands => handshake,
                    };
                    match handshake {
                        Ok(stream) => {
                            let chain = stream.get_ref().1.peer_certificates();
                            if let Some(certificate) = chain.and_then(<[_]>::first) {
                                extensions.insert(PeerCertificate(certificate.as_ref().into()));
                            }
                            let driver = drive(stream, routes, activity, extensions, terms, spread);
                            Box::pin(driver).await
                        }
                        Err(error) => {
                            debug!(%error, peer = %address, "TLS handshake failed");
                            metrics.handshakes_failed.inc();
                            Reason::Handshake
                        }
                    }
                }
            };
            // The socket is closed by now, so its descriptor is free when the permit is.
            drop(permit);
            metrics.closed(reason);
            debug!(peer = %address, reason = reason.name(), "connection ended");
        }
    }
}

/// What every socket of the main port gets.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Without it a small message waits for the peer's delayed acknowledgement.
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Closes with a reset: the peer knows at once, and no `TIME_WAIT` is left behind.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Whether an accept failed because of the machine and not of the peer: for want of descriptors of the
/// process or the system, buffers, memory, or for a rule of the kernel. It would fail again at once.
fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    let of_the_peer = [ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted];
    !of_the_peer.contains(&error.kind())
}

/// A descriptor to give up when there is none left.
struct Reserve(Option<File>);

impl Reserve {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Takes one waiting connection and resets it, so that its client need not wait for nothing.
    fn reset_one(&mut self, listener: &TcpListener) {
        self.0 = None;
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        if let std::task::Poll::Ready(Ok((stream, _))) = listener.poll_accept(&mut context) {
            reset(&stream);
        }
        self.0 = File::open("/dev/null").ok();
    }
}

/// What has been going wrong, so that it is logged once a second and not once a connection.
#[derive(Default)]
struct Trouble {
    pause: Option<Duration>,
    logged: Option<Instant>,
    refused: u64,
}

impl Trouble {
    fn may_log(&mut self) -> bool {
        let may = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_AGAIN);
        if may {
            self.logged = Some(Instant::now());
        }
        may
    }

    /// The pause after a shortage: twice as long as the last one.
    fn pause(&mut self, error: &io::Error, governor: &Governor) -> Duration {
        let (first, longest) = PAUSES;
        let pause = self.pause.map_or(first, |last| (last * 2).min(longest));
        self.pause = Some(pause);
        if self.may_log() {
            error!(%error, connections = governor.connections(), "cannot accept, trying again");
        }
        pause
    }

    fn refused(&mut self, refusal: Refusal, address: SocketAddr) {
        self.refused += 1;
        if self.may_log() {
            let refused = std::mem::take(&mut self.refused);
            warn!(peer = %address, reason = refusal.name(), refused, "connections refused");
        }
    }

    fn over(&mut self) {
        if self.pause.take().is_some() {
            info!("accepting again");
        }
    }
}

/// Numbers from -1 to 1, each far from those before it: steps of the golden ratio.
#[derive(Default)]
struct Spread(f64);

impl Spread {
    fn next(&mut self) -> f64 {
        const GOLDEN: f64 = 0.618_033_988_749_895;
        self.0 = (self.0 + GOLDEN).fract();
        self.0 * 2.0 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_evenly() {
        let mut spread = Spread::default();
        let mut numbers: Vec<_> = (0..100).map(|_| spread.next()).collect();
        numbers.sort_by(f64::total_cmp);
        assert!(numbers[0] > -1.0 && numbers[0] < -0.95);
        assert!(numbers[99] < 1.0 && numbers[99] > 0.95);
        assert!(numbers.windows(2).all(|pair| pair[1] - pair[0] < 0.05));
    }

    #[test]
    fn pauses_grow_to_half_a_second_and_begin_anew() {
        let governor = Governor::new(1, 1, Vec::new());
        let mut trouble = Trouble::default();
        let error = io::Error::from_raw_os_error(24);
        let pauses: Vec<_> = (0..9).map(|_| trouble.pause(&error, &governor).as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 500, 500]);
        trouble.over();
        assert_eq!(trouble.pause(&error, &governor).as_millis(), 5);
    }
}
