//! A TCP proxy that cuts its connections when it is told to, and can be pointed elsewhere.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Forwards what comes to `address`, until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (target, changes) = watch::channel(target);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.expect("a connection");
                let mut changes = changes.clone();
                let target = *changes.borrow_and_update();
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    // What it forwards waits for nothing but its far end.
                    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                        return;
                    }
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = changes.changed() => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, target, _tasks: tasks }
    }

    /// Cuts every connection, and sends new ones to `target`.
    pub(crate) fn turn_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }
}
