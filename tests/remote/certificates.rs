//! Certificates for tests, made by openssl: an authority, and what it signs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::servers::program;

const CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = mq test
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost
[elsewhere]
basicConstraints = CA:FALSE
subjectAltName = DNS:elsewhere.example
";

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Everything that a test of TLS wants.
pub struct Certificates {
    dir: PathBuf,
    /// Signs the others.
    pub ca: PathBuf,
    /// For `localhost`.
    pub good: Pair,
    /// The same, and expired a day ago.
    pub expired: Pair,
    /// For another host.
    pub elsewhere: Pair,
}

impl Certificates {
    /// Makes them in a directory.
    pub fn new(dir: &Path) -> Result<Certificates, String> {
        program("openssl").ok_or("openssl is not installed")?;
        std::fs::create_dir_all(dir).expect("a directory");
        std::fs::write(dir.join("config"), CONFIG).expect("written");
        let ca =
            "req -x509 -config config -extensions authority -days 2 -keyout ca.key -out ca.pem";
        openssl(dir, &format!("{ca} {NEW_KEY}"))?;
        Ok(Certificates {
            dir: dir.to_owned(),
            ca: dir.join("ca.pem"),
            good: signed(dir, "good", "server", 2)?,
            expired: signed(dir, "expired", "server", -1)?,
            elsewhere: signed(dir, "elsewhere", "elsewhere", 2)?,
        })
    }

    /// The good one as Java wants it, with the password `right`.
    pub fn pkcs12(&self) -> PathBuf {
        let made = "pkcs12 -export -in good.pem -inkey good.key -out good.p12 -passout pass:right";
        openssl(&self.dir, made).expect("a key store");
        self.dir.join("good.p12")
    }
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

fn signed(dir: &Path, name: &str, extensions: &str, days: i32) -> Result<Pair, String> {
    openssl(dir, &format!("req -new -config config -keyout {name}.key -out {name}.csr {NEW_KEY}"))?;
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile config -extensions {extensions} -out {name}.pem"
        ),
    )?;
    Ok(Pair { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) })
}

fn openssl(dir: &Path, args: &str) -> Result<(), String> {
    let ran = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output();
    let ran = ran.map_err(|error| format!("cannot run openssl: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ran.status.success().then_some(()).ok_or_else(|| format!("openssl {args}: {said}"))
}
