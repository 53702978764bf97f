//! Checks the privileges of the database user for `kinsync doctor`, from the server's `connectionStatus`. Writes nothing.

use bson::{Bson, Document, doc};

use super::{Inner, MongoStore};
use crate::store::{Error, timed};

/// Required actions on every collection; the role `readWrite` includes all of them.
const ACTIONS: [&str; 5] = ["find", "insert", "update", "remove", "createIndex"];

/// A missing privilege.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forbidden {
    /// Action such as `insert`.
    pub action: &'static str,
    /// Collection.
    pub collection: String,
}

impl MongoStore {
    /// Returns the missing privileges of the database user; none if the server has no access control.
    ///
    /// # Errors
    /// [`Error::Refused`] if the server has access control and the URI names no user.
    pub async fn forbidden(&self) -> Result<Vec<Forbidden>, Error> {
        timed("mongo", "forbidden", self.inner()?.forbidden()).await
    }
}

impl Inner {
    async fn forbidden(&self) -> Result<Vec<Forbidden>, Error> {
        let database = self.database.clone();
        let ask =
            async move { database.run_command(doc! { "connectionStatus": 1, "showPrivileges": true }).await };
        let status = self.calls.run("read the privileges", self.op_timeout, ask).await?;
        let Ok(info) = status.get_document("authInfo") else { return Ok(Vec::new()) };
        if list(info, "authenticatedUsers").is_empty() {
            // Fails unless the server has no access control.
            self.indexes(&self.users).await?;
            return Ok(Vec::new());
        }
        let granted = list(info, "authenticatedUserPrivileges");
        let collections = [self.users.name(), self.events.name(), self.state.name()];
        let wanted = collections.into_iter().flat_map(|name| ACTIONS.map(|action| (name, action)));
        let is_granted = |name: &str, action: &str| {
            granted.iter().filter_map(Bson::as_document).any(|privilege| {
                covers(privilege, self.database.name(), name)
                    && list(privilege, "actions").iter().any(|one| one.as_str() == Some(action))
            })
        };
        let forbidden = wanted.filter(|(name, action)| !is_granted(name, action));
        Ok(forbidden.map(|(name, action)| Forbidden { action, collection: name.to_owned() }).collect())
    }
}

fn list<'a>(document: &'a Document, key: &str) -> &'a [Bson] {
    document.get_array(key).map_or(&[], Vec::as_slice)
}

/// Returns whether a privilege covers a collection. An empty name in a privilege means all.
/// <https://www.mongodb.com/docs/manual/reference/resource-document/>
fn covers(privilege: &Document, database: &str, collection: &str) -> bool {
    let Ok(resource) = privilege.get_document("resource") else { return false };
    let fits = |key, name: &str| resource.get_str(key).is_ok_and(|one| one.is_empty() || one == name);
    resource.get_bool("anyResource").unwrap_or(false)
        || (fits("db", database) && fits("collection", collection))
}
