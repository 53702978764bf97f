// Kinde's own packages as clients of a running emulator. Reads what to check as JSON from the environment
// variable CHECK, and prints what each package made of it as JSON.
import "./webcrypto.mjs";
import { validateToken } from "@kinde/jwt-validator";
import { decodeWebhook } from "@kinde/webhooks";
import { Users, Webhooks, init } from "@kinde/management-api-js";

const { issuer, clientId, clientSecret, webhooks, tokens, pageSize } = JSON.parse(process.env.CHECK);

// The packages log each refused token; standard output is for the answer alone.
console.log = console.error;

const decoded = {};
for (const [name, token] of Object.entries(webhooks)) decoded[name] = await decodeWebhook(token, issuer);

const valid = {};
for (const [name, token] of Object.entries(tokens)) {
  valid[name] = (await validateToken({ token, domain: issuer })).valid;
}

init({ kindeDomain: issuer, clientId, clientSecret });
const ids = [];
let pages = 0;
let nextToken;
do {
  const page = await Users.getUsers({ pageSize, nextToken, expand: "organizations" });
  ids.push(...page.users.map((user) => user.id));
  nextToken = page.next_token;
  pages += 1;
} while (nextToken && pages < 100);
const user = await Users.getUserData({ id: ids[0] });
const endpoints = (await Webhooks.getWebHooks()).webhooks.map((webhook) => webhook.endpoint);

process.stdout.write(JSON.stringify({ decoded, valid, ids, pages, email: user.preferred_email, endpoints }));
