//! A minimal HTTP/1.1 client on plain sockets, so that the load generator uses little CPU.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Timeout of a response.
const TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER: usize = 64 * 1024;

/// A keep-alive connection for one request at a time.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and reads the response. Returns its status and body. Has no timeout.
    pub async fn send(&mut self, request: &[u8]) -> io::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[filled..]).await?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += count;
            if let Some(answer) = parse(&self.buffer[..filled])? {
                return if answer.length == filled {
                    Ok((answer.status, &self.buffer[answer.head..filled]))
                } else {
                    Err(bad("more than one response"))
                };
            }
            if filled == BUFFER {
                return Err(bad("the response is longer than the buffer"));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: usize,
    length: usize,
}

/// Parses a response; `None` if it is incomplete.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..head_end]).map_err(|_| bad("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| bad("no status"))?;
    let mut body = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            body = value.trim().parse::<usize>().ok();
        }
    }
    let body = body.ok_or_else(|| bad("no content-length, and chunked responses are not supported"))?;
    let head = head_end + 4;
    let length = head + body;
    Ok((bytes.len() >= length).then_some(Answer { status, head, length }))
}

fn bad(problem: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

/// Sends a GET request on a new connection.
pub async fn get(to: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    get_with(to, path, "").await
}

/// Sends a GET request with this bearer token on a new connection.
pub async fn get_as(to: SocketAddr, path: &str, token: &str) -> io::Result<(u16, String)> {
    get_with(to, path, &format!("authorization: Bearer {token}\r\n")).await
}

async fn get_with(to: SocketAddr, path: &str, headers: &str) -> io::Result<(u16, String)> {
    let answer = timeout(TIMEOUT, get_without_limit(to, path, headers)).await;
    answer.map_err(|_| io::Error::from(ErrorKind::TimedOut))?
}

async fn get_without_limit(to: SocketAddr, path: &str, headers: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(to).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {to}\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8(bytes).map_err(|_| bad("the response is not text"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| bad("no head"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("no status"))?;
    Ok((status, body.to_owned()))
}

/// Whether /health/ready answers 200.
pub async fn is_ready(to: SocketAddr) -> io::Result<bool> {
    Ok(get(to, "/health/ready").await?.0 == 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_with_the_last_byte_of_its_body() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]).unwrap(), None);
        }
        assert_eq!(
            parse(text).unwrap(),
            Some(Answer { status: 200, head: text.len() - 2, length: text.len() })
        );
    }
}
