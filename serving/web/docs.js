"use strict";
SwaggerUIBundle({ url: new URL("openapi.json", location.origin + location.pathname).href, dom_id: "#docs", deepLinking: true, validatorUrl: null, tryItOutEnabled: true });
