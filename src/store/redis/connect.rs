//! Connections to servers: sockets, TLS by ring, credentials, and sentinels' advice.
//!
//! What an error says names the host and the port and never a credential.

use std::{future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    ServerErrorKind,
    aio::{MultiplexedConnection, SendError},
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::facts::Facts;
use crate::config::{self, Address, Secret, Topology};

/// Time to reach a server, TLS and credentials included.
const CONNECT: Duration = Duration::from_secs(2);
/// Time for a reply. A script takes microseconds; a WAIT at most a second.
pub(super) const REPLY: Duration = Duration::from_secs(2);
/// Commands that wait to be written; more wait in their callers.
const QUEUE: usize = 1024;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work later.
    Down(String),
    /// It will not work until somebody changes something.
    Refused(String),
}

/// Gets what a connection is pushed.
pub(super) type Pushed = Arc<dyn Fn(PushInfo) + Send + Sync>;
/// The work that a connection needs to live; it ends when the connection does.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection, and what its server is.
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: Driver,
    pub(super) address: Address,
    pub(super) facts: Facts,
}

impl Connection {
    /// Does `work` on the connection while it is kept alive.
    pub(super) async fn drive<T>(
        driver: &mut Driver,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        tokio::select! {
            done = work => done,
            () = driver => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// Makes connections.
pub(super) struct Connector {
    settings: config::Redis,
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the certificates. Blocks.
    pub(super) fn new(settings: &config::Redis) -> Result<Self, String> {
        let tls = settings.tls.then(|| tls(settings.ca_file.as_deref())).transpose()?;
        Ok(Self { settings: settings.clone(), tls })
    }

    pub(super) fn settings(&self) -> &config::Redis {
        &self.settings
    }

    /// Connects to the server that takes writes: the one there is, or the one that the sentinels name,
    /// or any node of a cluster.
    pub(super) async fn primary(&self, pushed: Option<Pushed>) -> Result<Connection, Failure> {
        let address = match &self.settings.topology {
            Topology::Single => self.settings.addresses[0].clone(),
            Topology::Sentinel { primary } => self.ask_sentinels(primary).await?,
            Topology::Cluster => return self.any_node(pushed).await,
        };
        let connection = self.connect(&address, pushed).await?;
        if connection.facts.primary {
            return Ok(connection);
        }
        let why = format!("{address} is a replica, which takes no writes");
        // Sentinels may be a moment behind; an address that somebody wrote down is a mistake.
        let by_sentinel = matches!(self.settings.topology, Topology::Sentinel { .. });
        Err(if by_sentinel { Failure::Down(why) } else { Failure::Refused(why) })
    }

    async fn any_node(&self, pushed: Option<Pushed>) -> Result<Connection, Failure> {
        let mut last = Failure::Down("there is no node".to_owned());
        for address in &self.settings.addresses {
            match self.connect(address, pushed.clone()).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// Connects to one server and asks what it is.
    pub(super) async fn connect(
        &self,
        address: &Address,
        pushed: Option<Pushed>,
    ) -> Result<Connection, Failure> {
        let password = self.password().await?;
        let (commands, mut driver) = self.open(address, password.as_ref(), true, pushed).await?;
        let mut info = commands.clone();
        let asked = async move { redis::cmd("INFO").query_async::<String>(&mut info).await };
        let info = Connection::drive(&mut driver, asked)
            .await
            .map_err(|error| failure(address, &error))?;
        let facts = Facts::of_info(&info);
        if facts.loading {
            return Err(Failure::Down(format!("{address} is still loading its data")));
        }
        if let Some(why) = facts.refusal(&self.settings.topology) {
            return Err(Failure::Refused(format!("{address}: {why}")));
        }
        Ok(Connection { commands, driver, address: address.clone(), facts })
    }

    /// Asks one sentinel after the other where the primary is.
    async fn ask_sentinels(&self, name: &str) -> Result<Address, Failure> {
        let mut last = Failure::Down("there is no sentinel".to_owned());
        for sentinel in &self.settings.addresses {
            match self.ask_sentinel(sentinel, name).await {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => {
                    last = Failure::Down(format!("sentinel {sentinel} knows no primary {name:?}"));
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn ask_sentinel(
        &self,
        sentinel: &Address,
        name: &str,
    ) -> Result<Option<Address>, Failure> {
        // Most sentinels want no password, and some refuse one that they do not want.
        let (mut commands, mut driver) = self.open(sentinel, None, false, None).await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let asked = ask.query_async::<Option<(String, u16)>>(&mut commands);
        let answer = match Connection::drive(&mut driver, asked).await {
            Err(error) if error.code() == Some("NOAUTH") => {
                let password = self.password().await?;
                let (mut commands, mut driver) =
                    self.open(sentinel, password.as_ref(), false, None).await?;
                let asked = ask.query_async::<Option<(String, u16)>>(&mut commands);
                Connection::drive(&mut driver, asked).await
            }
            answer => answer,
        };
        let answer = answer.map_err(|error| failure(sentinel, &error))?;
        Ok(answer.map(|(host, port)| Address { host, port }))
    }

    async fn open(
        &self,
        address: &Address,
        password: Option<&Secret>,
        data: bool,
        pushed: Option<Pushed>,
    ) -> Result<(MultiplexedConnection, Driver), Failure> {
        let mut info =
            RedisConnectionInfo::default().set_lib_name("chatbot", env!("CARGO_PKG_VERSION"));
        if let (Some(user), Some(_)) = (&self.settings.user, password) {
            info = info.set_username(user);
        }
        if let Some(Secret(password)) = password {
            info = info.set_password(password);
        }
        if data && self.settings.database != 0 {
            info = info.set_db(self.settings.database.into());
        }
        let mut config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(REPLY))
            .set_pipeline_buffer_size(QUEUE);
        if let Some(pushed) = pushed {
            // Pushed messages come between replies only in the newer protocol.
            info = info.set_protocol(ProtocolVersion::RESP3);
            config = config.set_push_sender(move |push: PushInfo| -> Result<(), SendError> {
                pushed(push);
                Ok(())
            });
        }
        let opened = tokio::time::timeout(CONNECT, self.shake_hands(address, &info, config)).await;
        opened.unwrap_or_else(|_| {
            let seconds = CONNECT.as_secs();
            Err(Failure::Down(format!("{address} does not answer within {seconds} s")))
        })
    }

    async fn shake_hands(
        &self,
        address: &Address,
        info: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<(MultiplexedConnection, Driver), Failure> {
        let down = |error: std::io::Error| Failure::Down(format!("{address}: {error}"));
        let stream =
            TcpStream::connect((address.host.as_str(), address.port)).await.map_err(down)?;
        stream.set_nodelay(true).map_err(down)?;
        let Some(tls) = &self.tls else {
            let (commands, driver) = MultiplexedConnection::new_with_config(info, stream, config)
                .await
                .map_err(|error| failure(address, &error))?;
            return Ok((commands, Box::pin(driver)));
        };
        let name = ServerName::try_from(address.host.clone()).map_err(|_| {
            Failure::Refused(format!("{:?} cannot be in a certificate", address.host))
        })?;
        let stream = tls.connect(name, stream).await.map_err(|error| {
            // A certificate that does not fit is a mistake; a connection that breaks is not.
            if error.kind() == std::io::ErrorKind::InvalidData {
                Failure::Refused(format!("{address}: {error}; is store.ca_file right?"))
            } else {
                down(error)
            }
        })?;
        let (commands, driver) = MultiplexedConnection::new_with_config(info, stream, config)
            .await
            .map_err(|error| failure(address, &error))?;
        Ok((commands, Box::pin(driver)))
    }

    /// The password as it is now: files are replaced while the server runs.
    async fn password(&self) -> Result<Option<Secret>, Failure> {
        let Some(path) = self.settings.password_file.clone() else {
            return Ok(self.settings.password.clone());
        };
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
        let read = read.map_err(|error| Failure::Down(format!("a read was lost: {error}")))?;
        let text = read.map_err(|error| {
            Failure::Refused(format!("store.password_file {shown} cannot be read: {error}"))
        })?;
        let text = text.trim();
        if text.is_empty() {
            return Err(Failure::Refused(format!("store.password_file {shown} is empty")));
        }
        Ok(Some(Secret(text.to_owned())))
    }
}

/// What an error while connecting means.
fn failure(address: &Address, error: &RedisError) -> Failure {
    let denied = error.kind() == ErrorKind::AuthenticationFailed
        || error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
    if denied {
        return Failure::Refused(format!(
            "{address} does not take the user and password of store.url or store.password_file \
             ({error})"
        ));
    }
    Failure::Down(format!("{address}: {error}"))
}

fn tls(ca_file: Option<&Path>) -> Result<TlsConnector, String> {
    let path = match ca_file {
        Some(path) => path,
        None => SYSTEM_ROOTS
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or("there are no authorities on this system; set store.ca_file")?,
    };
    let unreadable = |why: &dyn std::fmt::Display| {
        format!("cannot read certificate authorities from {}: {why}", path.display())
    };
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&error))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found);
    if added == 0 {
        return Err(unreadable(&"there is none in it"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
