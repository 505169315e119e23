//! TLS, with a certificate that may be renewed while we serve.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::{
    listen::Stream,
    watched::{self, Watched},
};
use crate::{limits, sync::lock};

/// A certificate and its key, from PEM files.
pub struct Tls {
    certificate: Watched,
    key: Watched,
    acceptor: Mutex<TlsAcceptor>,
}

impl Tls {
    pub fn load(certificate: &Path, key: &Path) -> io::Result<Tls> {
        let tls = Tls {
            certificate: Watched::new(certificate.into()),
            key: Watched::new(key.into()),
            acceptor: Mutex::new(read(certificate, key)?),
        };
        tls.certificate.changed(); // from now on
        tls.key.changed();
        Ok(tls)
    }

    /// For the next connection. Changed files are reloaded first; if they are not a pair, the old ones stay, because
    /// the two files are never replaced at the same moment.
    pub fn acceptor(&self) -> TlsAcceptor {
        let changed = [self.certificate.changed(), self.key.changed()];
        let mut acceptor = lock(&self.acceptor);
        if changed.contains(&true) {
            match read(&self.certificate.path, &self.key.path) {
                Ok(new) => {
                    tracing::info!("TLS certificate reloaded");
                    *acceptor = new;
                }
                Err(e) => tracing::warn!("reloading the TLS certificate failed, the old one stays in use: {e}"),
            }
        }
        acceptor.clone()
    }

    /// Has the files read again at the next connection, changed or not.
    pub fn forget(&self) {
        self.certificate.forget();
    }
}

fn read(certificate: &Path, key: &Path) -> io::Result<TlsAcceptor> {
    let wrong = |path: &Path, e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|e| wrong(certificate, &e))?;
    let (text, mode) = watched::read(key, limits::KEY_FILE_BYTES)?;
    watched::keeps_a_secret(key, mode)?;
    let secret = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|e| wrong(key, &e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| wrong(certificate, &e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The encrypted stream, if the client agrees to one.
pub async fn secure(acceptor: TlsAcceptor, stream: Pin<Box<dyn Stream>>) -> io::Result<Pin<Box<dyn Stream>>> {
    Ok(Box::pin(acceptor.accept(stream).await?))
}
