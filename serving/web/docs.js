"use strict";
SwaggerUIBundle({ url: new URL("openapi.json", document.baseURI).href, dom_id: "#docs", deepLinking: true, validatorUrl: null, tryItOutEnabled: true });
