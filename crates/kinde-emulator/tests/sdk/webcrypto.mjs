// `@kinde/webhooks` reads the globals `crypto` and `CryptoKey`, which Node.js 18 does not define. Imported before the package.
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto;
globalThis.CryptoKey ??= webcrypto.CryptoKey;
