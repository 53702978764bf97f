//! Counts written documents in the oplog of MongoDB, which has one entry for each changed document.

use anyhow::Context as _;
use bson::{Bson, Document, Timestamp, doc};
use futures_util::StreamExt as _;
use mongodb::Collection;

use crate::mongo::Mongod;

/// A position in the oplog.
#[derive(Debug, Clone, Copy)]
pub struct Position(Timestamp);

fn log(mongod: &Mongod) -> Collection<Document> {
    mongod.database("local").collection("oplog.rs")
}

/// Returns the end of the oplog.
pub async fn end(mongod: &Mongod) -> anyhow::Result<Position> {
    let last = log(mongod).find_one(doc! {}).sort(doc! { "$natural": -1 }).await?;
    let ts = last.as_ref().and_then(|entry| entry.get_timestamp("ts").ok()).context("the oplog is empty")?;
    Ok(Position(ts))
}

/// Counts the documents of `namespace` (`database.collection`) that were inserted or changed since `from`.
pub async fn writes_since(mongod: &Mongod, from: Position, namespace: &str) -> anyhow::Result<u64> {
    // Newer servers group inserts in one entry.
    let grouped = doc! { "$filter": { "input": "$o.applyOps", "cond": { "$eq": ["$$this.ns", namespace] } } };
    let pipeline = [
        doc! { "$match": { "ts": { "$gt": from.0 }, "$or": [
            { "ns": namespace, "op": { "$in": ["i", "u"] } },
            { "ns": "admin.$cmd", "o.applyOps.ns": namespace },
        ] } },
        doc! { "$project": { "count": { "$cond": [{ "$isArray": "$o.applyOps" }, { "$size": grouped }, 1] } } },
        doc! { "$group": { "_id": null, "count": { "$sum": "$count" } } },
    ];
    let mut rows = log(mongod).aggregate(pipeline).await?;
    let Some(row) = rows.next().await.transpose()? else { return Ok(0) };
    match row.get("count") {
        Some(Bson::Int32(count)) => Ok(u64::try_from(*count)?),
        Some(Bson::Int64(count)) => Ok(u64::try_from(*count)?),
        other => anyhow::bail!("the oplog count is {other:?}"),
    }
}
