//! TLS: which certificates are believed, which are ours, and what is wrong with a server's, in words.
//!
//! Never connects. Called by the engines; [`Place::tls`](super::place::Place::tls) makes failures of it.

use super::address::Address;
use super::failure::{Failure, Kind};

/// The files that `?ca=`, `?cert=` and `?key=` name, as they were read.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Certificates of those that are believed, beside the system's: PEM.
    pub ca: Option<String>,
    /// Who we are: our certificates and our key, PEM, and the paths of both.
    pub identity: Option<Identity>,
}

/// A certificate of ours and its key.
#[derive(Clone)]
pub struct Identity {
    /// The certificates, PEM.
    pub cert: String,
    /// The key, PEM.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Identity(..)")
    }
}

impl TlsFiles {
    /// Takes the three options out of an address and reads their files.
    ///
    /// # Errors
    /// A file that cannot be read; a certificate without its key.
    pub fn take(address: &mut Address) -> Result<TlsFiles, Failure> {
        let mut read = |option: &str| match address.take_option(option) {
            None => Ok(None),
            Some(path) => std::fs::read_to_string(&path).map(Some).map_err(|error| {
                let message = format!("cannot read {path}, which ?{option}= names: {error}");
                Failure::new(Kind::Other, message)
            }),
        };
        let ca = read("ca")?;
        let identity = match (read("cert")?, read("key")?) {
            (Some(cert), Some(key)) => Some(Identity { cert, key }),
            (None, None) => None,
            _ => {
                let message = "?cert= and ?key= come together: a certificate and its key";
                return Err(Failure::unsupported(message));
            }
        };
        Ok(TlsFiles { ca, identity })
    }

    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }
}

#[cfg(any(feature = "nats", feature = "stomp"))]
mod config {
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::TlsFiles;
    use crate::remote::failure::Failure;
    use crate::remote::place::Place;

    impl TlsFiles {
        /// How a client is to do TLS with these files: the system's authorities are believed beside those
        /// of `?ca=`.
        ///
        /// # Errors
        /// A file that holds something else.
        pub fn client_config(&self, place: &Place) -> Result<ClientConfig, Failure> {
            let bad = |option: &str, why: String| {
                place.tls(format!("the file of ?{option}= cannot be used: {why}"))
            };
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            for certificate in certificates(self.ca.as_deref().unwrap_or_default()) {
                let certificate = certificate.map_err(|why| bad("ca", why))?;
                roots.add(certificate).map_err(|error| bad("ca", error.to_string()))?;
            }
            let config = ClientConfig::builder().with_root_certificates(roots);
            let Some(identity) = &self.identity else { return Ok(config.with_no_client_auth()) };
            let ours = certificates(&identity.cert).collect::<Result<Vec<_>, _>>();
            let ours = ours.map_err(|why| bad("cert", why))?;
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
            let key = key.map_err(|error| bad("key", error.to_string()))?;
            config.with_client_auth_cert(ours, key).map_err(|error| bad("cert", error.to_string()))
        }
    }

    fn certificates(
        pem: &str,
    ) -> impl Iterator<Item = Result<CertificateDer<'static>, String>> + '_ {
        let each = CertificateDer::pem_slice_iter(pem.as_bytes());
        each.map(|certificate| certificate.map_err(|error| error.to_string()))
    }
}

/// What is wrong with a server's certificate, by the words of rustls, and what to do about it; `None`: it is
/// something else.
///
/// By its words, as engines' clients hand on errors of rustls as texts.
#[must_use]
pub fn about_certificate(text: &str) -> Option<(String, &'static str)> {
    if text.contains("UnknownIssuer") || text.contains("CaUsedAsEndEntity") {
        return Some((
            "its certificate is signed by nobody whom this machine believes".to_owned(),
            "if it is the right one, name the certificate of who signed it: ?ca=FILE in the URL, or \
             SSL_CERT_FILE",
        ));
    }
    if text.contains("Expired") || text.contains("certificate expired") {
        let when = time_behind(text, "not valid after ");
        return Some((
            format!("its certificate has expired{when}"),
            "it has to be renewed there, unless it is the clock of this machine that is wrong",
        ));
    }
    if text.contains("NotValidYet") || text.contains("certificate not valid yet") {
        let when = time_behind(text, "not valid before ");
        return Some((
            format!("its certificate is not valid yet{when}"),
            "is the clock of this machine right?",
        ));
    }
    if let Some((_, rest)) = text.split_once("certificate not valid for name ") {
        let named = rest.split('"').nth(1).unwrap_or("that name");
        let names: Vec<&str> =
            rest.split("Name(\"").skip(1).filter_map(|n| n.split('"').next()).collect();
        let others = if names.is_empty() { "another" } else { &names.join(", ") };
        return Some((
            format!("its certificate is not for {named}, but for {others}"),
            "use that name as the host in the URL, if it leads there; else this may be somebody else",
        ));
    }
    text.contains("Revoked")
        .then(|| ("its certificate was revoked".to_owned(), "it has to be renewed there"))
}

/// `, at TIME`, of the seconds since 1970 that stand behind some words.
fn time_behind(text: &str, words: &str) -> String {
    let digits = text.split_once(words).map(|(_, rest)| rest);
    let digits = digits.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    let time = digits.and_then(|digits| digits.parse().ok());
    let time = time.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(String::new, |time| format!(", at {time}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_certificate_has_its_own_words() {
        for (text, wanted) in [
            ("invalid peer certificate: UnknownIssuer", "signed by nobody"),
            (
                "invalid peer certificate: certificate expired: verification time 1796000060 (UNIX), but \
                 certificate is not valid after 1796000000 (60 seconds ago)",
                "expired, at 2026-11-30T00:53:20Z",
            ),
            ("invalid peer certificate: Expired", "its certificate has expired"),
            (
                "certificate not valid for name \"127.0.0.1\"; certificate is only valid for \
                 DnsName(\"localhost\") or DnsName(\"b\")",
                "not for 127.0.0.1, but for localhost, b",
            ),
        ] {
            let (said, _) = about_certificate(text).expect("it is about the certificate");
            assert!(said.contains(wanted), "{said}");
        }
        assert_eq!(about_certificate("received corrupt message"), None);
    }
}
